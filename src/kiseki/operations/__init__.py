"""What keeps a running system safe: backup, restore, disaster recovery. Used by the command line."""
