"""Applications that show how kiseki is used."""
