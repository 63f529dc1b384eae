"""What results are worth: records, metrics, leaderboard, submissions."""
