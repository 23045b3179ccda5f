"""Collections and encoders kept open between requests, and the threads that work for them."""
