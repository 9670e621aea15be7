"""What a score means for one policy: maps from P(+) to shares of right steps."""
