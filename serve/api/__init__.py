"""What the service answers: its routes, the types of what they take and return, and the forms of answers."""
