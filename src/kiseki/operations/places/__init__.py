"""Where backups are kept: one port, folders and S3."""
