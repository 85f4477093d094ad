"""What all rooms may import: exit codes, extras, proxies, loops in threads, lists, intervals, and reports."""
