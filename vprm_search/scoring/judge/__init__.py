"""What a chat model is asked as a judge, and what it answered."""
