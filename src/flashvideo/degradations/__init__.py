"""What turns a high-quality video into the low-quality start of Stage II."""
