"""What changes the order of scored candidates before an answer is cut from them: dislikes, then the service's rules."""
