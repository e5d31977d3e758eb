"""What outlives a request: experiments in all versions, exposures, outcomes, settings. SQLite or PostgreSQL."""
