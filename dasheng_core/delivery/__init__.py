"""What happens to a finished sound: measures, finishing, formats, files and what is written into them."""
