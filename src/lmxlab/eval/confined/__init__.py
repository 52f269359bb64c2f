"""What runs on the other side: processes for programs that nobody vouches for, importing nothing of lmxlab but this."""
