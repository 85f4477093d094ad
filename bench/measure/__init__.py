"""Measuring: experiments and their runs, progress, checks of answers, searches, objectives and intervals."""
