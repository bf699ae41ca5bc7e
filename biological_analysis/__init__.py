"""What synthetic cells are worth to biology: rare types found, markers kept."""
