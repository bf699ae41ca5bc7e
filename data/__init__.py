"""Where data sets lie, and the script that fetches them."""
