-- Version 4: vocabularies of tags. Versions never change; one of them counts.

CREATE TABLE vocabularies(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  -- The number of the newest version, which is not used again.
  latest INTEGER NOT NULL,
  -- Without one, the vocabulary is deleted.
  current_version INTEGER,
  created_at INTEGER NOT NULL
);
CREATE TABLE vocabulary_versions(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  vocabulary_id INTEGER NOT NULL REFERENCES vocabularies(id),
  version INTEGER NOT NULL,
  -- What it says, as JSON, and the hash of that.
  content TEXT NOT NULL,
  digest TEXT NOT NULL,
  message TEXT NOT NULL,
  author_id INTEGER NOT NULL REFERENCES authors(id),
  created_at INTEGER NOT NULL,
  UNIQUE(vocabulary_id, version)
);
