"""The journal on DynamoDB: one item per commit, followed by the table's stream."""
