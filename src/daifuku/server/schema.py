"""The tables of the job database, as a list of numbered migrations."""

import sqlite3

from daifuku.errors import InvalidRequest

END_STATES = ("completed", "failed", "cancelled")
"""A job reaches one of these, and never leaves it."""

STATES = ("queued", "running", *END_STATES)

_quoted = ", ".join(f"'{state}'" for state in STATES)
_ends = ", ".join(f"'{state}'" for state in END_STATES)

MIGRATIONS = (
    f"""
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        tenant TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('generate', 'decode')),
        parent TEXT,
        model TEXT NOT NULL,
        request TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ({_quoted})),
        fence INTEGER NOT NULL DEFAULT 0,
        lease_until REAL,
        deaths INTEGER NOT NULL DEFAULT 0,
        restarts INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL,
        started_at REAL,
        ended_at REAL,
        error_code TEXT,
        error_message TEXT,
        result TEXT,
        num_bytes INTEGER NOT NULL DEFAULT 0,
        files_gone_at REAL,
        deleted_at REAL
    );
    CREATE INDEX jobs_waiting ON jobs (number) WHERE state = 'queued';
    CREATE INDEX jobs_open ON jobs (tenant, state) WHERE state IN ('queued', 'running');
    CREATE INDEX jobs_listed ON jobs (tenant, number) WHERE deleted_at IS NULL;
    CREATE INDEX jobs_kept ON jobs (ended_at) WHERE num_bytes > 0 AND files_gone_at IS NULL;
    CREATE TRIGGER jobs_end_once BEFORE UPDATE OF state ON jobs
        WHEN OLD.state IN ({_ends}) AND NEW.state != OLD.state
        BEGIN SELECT RAISE(ABORT, 'a job that has ended stays as it is'); END;
    CREATE TABLE answers (
        tenant TEXT NOT NULL,
        key TEXT NOT NULL,
        body_sha256 TEXT NOT NULL,
        job_ids TEXT NOT NULL,
        created_at REAL NOT NULL,
        PRIMARY KEY (tenant, key)
    );
    CREATE INDEX answers_by_age ON answers (created_at);
    """,
    f"""
    CREATE TABLE predictions (
        job_id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        input_sha256 TEXT NOT NULL,
        base_url TEXT NOT NULL,
        webhook TEXT,
        events TEXT NOT NULL,
        UNIQUE (tenant, name)
    );
    CREATE TABLE outbox (
        job_id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        base_url TEXT NOT NULL,
        webhook TEXT NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0,
        due_at REAL NOT NULL
    );
    CREATE INDEX outbox_due ON outbox (due_at);
    CREATE TRIGGER jobs_tell_their_end AFTER UPDATE OF state ON jobs
        WHEN NEW.state IN ({_ends}) AND OLD.state NOT IN ({_ends})
        BEGIN
            INSERT INTO outbox (job_id, name, base_url, webhook, due_at)
                SELECT job_id, name, base_url, webhook, NEW.ended_at FROM predictions
                WHERE job_id = NEW.id AND webhook IS NOT NULL AND events LIKE '%"completed"%';
        END;
    CREATE TRIGGER jobs_take_all_along AFTER DELETE ON jobs
        BEGIN
            DELETE FROM predictions WHERE job_id = OLD.id;
            DELETE FROM outbox WHERE job_id = OLD.id;
        END;
    """,
)
"""Each makes of the schema before it the next one. What has been released is never edited, only added to."""


def migrate(connection: sqlite3.Connection) -> None:
    """Brings a database to the newest schema, each migration whole or not at all.

    Raises InvalidRequest for a database that a newer version has written.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > len(MIGRATIONS):
        raise InvalidRequest(
            f"the job database has schema {found}, and this version knows schemas up to {len(MIGRATIONS)}. Start the "
            "version of daifuku that wrote it, or name another folder with --data."
        )
    for number, script in enumerate(MIGRATIONS[found:], start=found + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")
