-- Version 2: prompts and experiments. Versions never change; labels say which one is served.

CREATE TABLE prompts(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  description TEXT NOT NULL,
  created_at INTEGER NOT NULL
);
CREATE TABLE prompt_versions(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  prompt_id INTEGER NOT NULL REFERENCES prompts(id),
  version INTEGER NOT NULL,
  -- What it says, as JSON, and the hash of that.
  content TEXT NOT NULL,
  digest TEXT NOT NULL,
  message TEXT NOT NULL,
  author_id INTEGER NOT NULL REFERENCES authors(id),
  created_at INTEGER NOT NULL,
  UNIQUE(prompt_id, version)
);
CREATE TABLE prompt_labels(
  prompt_id INTEGER NOT NULL REFERENCES prompts(id),
  label TEXT NOT NULL,
  version INTEGER NOT NULL,
  protected INTEGER NOT NULL,
  PRIMARY KEY(prompt_id, label)
) WITHOUT ROWID;
-- Without a version: it was removed.
CREATE TABLE label_history(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  prompt_id INTEGER NOT NULL REFERENCES prompts(id),
  label TEXT NOT NULL,
  version INTEGER,
  protected INTEGER NOT NULL,
  author_id INTEGER NOT NULL REFERENCES authors(id),
  created_at INTEGER NOT NULL
);
CREATE INDEX label_history_prompt ON label_history(prompt_id, id);

CREATE TABLE experiments(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  prompt_id INTEGER NOT NULL REFERENCES prompts(id),
  -- [[version, weight], …]
  variants TEXT NOT NULL,
  unit TEXT NOT NULL,
  salt TEXT NOT NULL,
  metric TEXT NOT NULL,
  planned INTEGER NOT NULL,
  author_id INTEGER NOT NULL REFERENCES authors(id),
  started_at INTEGER NOT NULL,
  stopped_at INTEGER,
  promoted INTEGER
);
CREATE UNIQUE INDEX experiments_running ON experiments(prompt_id) WHERE stopped_at IS NULL;

-- Each caption that was made with a prompt. A text that the photo had already has no revision here.
CREATE TABLE exposures(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  prompt_version_id INTEGER NOT NULL REFERENCES prompt_versions(id),
  experiment_id INTEGER REFERENCES experiments(id),
  asset_id INTEGER NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  revision_id INTEGER REFERENCES revisions(id) ON DELETE CASCADE,
  confidence REAL,
  latency REAL,
  cost REAL,
  created_at INTEGER NOT NULL
);
CREATE INDEX exposures_experiment ON exposures(experiment_id) WHERE experiment_id IS NOT NULL;
CREATE INDEX exposures_asset ON exposures(asset_id);
CREATE INDEX exposures_revision ON exposures(revision_id) WHERE revision_id IS NOT NULL;

ALTER TABLE revisions ADD COLUMN prompt_version_id INTEGER REFERENCES prompt_versions(id);
ALTER TABLE revisions ADD COLUMN experiment_id INTEGER REFERENCES experiments(id);
