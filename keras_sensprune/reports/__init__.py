"""Records to text, Markdown and pictures."""
