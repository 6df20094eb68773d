"""What a user composes: contexts into an application, and the application running over given stores."""
