"""Moving a whole journal as a file of JSON lines, also between stores."""
