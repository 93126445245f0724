"""Generation: prompts to text and speech, and the likelihood of given answers."""
