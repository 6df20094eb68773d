"""Copies of the stores on DynamoDB."""
