"""What the service withstands: one module for each row of the security requirements, and the attacks."""
