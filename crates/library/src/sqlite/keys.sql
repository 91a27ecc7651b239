-- Version 2: keys of clients, and what they have used.

CREATE TABLE api_keys(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  -- What it may do, as JSON.
  rules TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  revoked_at INTEGER,
  last_used_at INTEGER
);

-- A rotation adds a row.
CREATE TABLE api_key_secrets(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  key_id INTEGER NOT NULL REFERENCES api_keys(id),
  hash BLOB NOT NULL UNIQUE CHECK(length(hash) = 32),
  prefix TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  -- After a rotation.
  valid_until INTEGER
);
CREATE INDEX api_key_secrets_key ON api_key_secrets(key_id);

CREATE TABLE usage_daily(
  -- Days since 1970.
  day INTEGER NOT NULL,
  key_id INTEGER NOT NULL REFERENCES api_keys(id),
  model TEXT NOT NULL,
  requests INTEGER NOT NULL,
  images INTEGER NOT NULL,
  cached INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  PRIMARY KEY(day, key_id, model)
) WITHOUT ROWID;
