"""What was shown and clicked: taken by the service, made durable, shipped elsewhere, and counted."""
