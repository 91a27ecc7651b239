-- Version 2: keys of clients, and what they have used. The tables are those of SQLite.

CREATE TABLE api_keys(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name TEXT COLLATE "C" NOT NULL UNIQUE,
  -- What it may do, as JSON.
  rules TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  revoked_at BIGINT,
  last_used_at BIGINT
);

-- A rotation adds a row.
CREATE TABLE api_key_secrets(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  key_id BIGINT NOT NULL REFERENCES api_keys(id),
  hash BYTEA NOT NULL UNIQUE CHECK(length(hash) = 32),
  prefix TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  -- After a rotation.
  valid_until BIGINT
);
CREATE INDEX api_key_secrets_key ON api_key_secrets(key_id);

CREATE TABLE usage_daily(
  -- Days since 1970.
  day BIGINT NOT NULL,
  key_id BIGINT NOT NULL REFERENCES api_keys(id),
  model TEXT COLLATE "C" NOT NULL,
  requests BIGINT NOT NULL,
  images BIGINT NOT NULL,
  cached BIGINT NOT NULL,
  errors BIGINT NOT NULL,
  prompt_tokens BIGINT NOT NULL,
  completion_tokens BIGINT NOT NULL,
  PRIMARY KEY(day, key_id, model)
);
