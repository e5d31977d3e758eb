"""What outlives a request: experiments in all versions, exposures, outcomes, settings.

It is an SQLite file or a PostgreSQL database.

options         what an operator may set of the store
database        the database, opened and brought to the newest schema
migrations/     the steps from one schema to the next
schema          the tables as SQLAlchemy knows them
records         rows as values
errors          what the store refuses
experiments     experiments in all their versions
settings        values by key that survive restarts
tickets         signed request ids, under which outcomes are sent
exposures       writing what an arm has acted on
feedback        taking outcomes, late, early or twice
prompts         texts of requests, redacted
redact          personal data in texts, replaced by labels
measures        what an analysis reads of the logs
write_behind    the queue between requests and the database
retention       deleting what is old
"""
