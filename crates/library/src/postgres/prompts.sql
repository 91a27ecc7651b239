-- Version 2: prompts and experiments. Versions never change; labels say which one is served.

CREATE TABLE prompts(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name TEXT COLLATE "C" NOT NULL UNIQUE,
  description TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL
);
CREATE TABLE prompt_versions(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  prompt_id BIGINT NOT NULL REFERENCES prompts(id),
  version BIGINT NOT NULL,
  -- What it says, as JSON, and the hash of that.
  content TEXT COLLATE "C" NOT NULL,
  digest TEXT COLLATE "C" NOT NULL,
  message TEXT COLLATE "C" NOT NULL,
  author_id BIGINT NOT NULL REFERENCES authors(id),
  created_at BIGINT NOT NULL,
  UNIQUE(prompt_id, version)
);
CREATE TABLE prompt_labels(
  prompt_id BIGINT NOT NULL REFERENCES prompts(id),
  label TEXT COLLATE "C" NOT NULL,
  version BIGINT NOT NULL,
  protected BOOLEAN NOT NULL,
  PRIMARY KEY(prompt_id, label)
);
-- Without a version: it was removed.
CREATE TABLE label_history(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  prompt_id BIGINT NOT NULL REFERENCES prompts(id),
  label TEXT COLLATE "C" NOT NULL,
  version BIGINT,
  protected BOOLEAN NOT NULL,
  author_id BIGINT NOT NULL REFERENCES authors(id),
  created_at BIGINT NOT NULL
);
CREATE INDEX label_history_prompt ON label_history(prompt_id, id);

CREATE TABLE experiments(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name TEXT COLLATE "C" NOT NULL UNIQUE,
  prompt_id BIGINT NOT NULL REFERENCES prompts(id),
  -- [[version, weight], …]
  variants TEXT COLLATE "C" NOT NULL,
  unit TEXT COLLATE "C" NOT NULL,
  salt TEXT COLLATE "C" NOT NULL,
  metric TEXT COLLATE "C" NOT NULL,
  planned BIGINT NOT NULL,
  author_id BIGINT NOT NULL REFERENCES authors(id),
  started_at BIGINT NOT NULL,
  stopped_at BIGINT,
  promoted BIGINT
);
CREATE UNIQUE INDEX experiments_running ON experiments(prompt_id) WHERE stopped_at IS NULL;

-- Each caption that was made with a prompt. A text that the photo had already has no revision here.
CREATE TABLE exposures(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  prompt_version_id BIGINT NOT NULL REFERENCES prompt_versions(id),
  experiment_id BIGINT REFERENCES experiments(id),
  asset_id BIGINT NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  revision_id BIGINT REFERENCES revisions(id) ON DELETE CASCADE,
  confidence DOUBLE PRECISION,
  latency DOUBLE PRECISION,
  cost DOUBLE PRECISION,
  created_at BIGINT NOT NULL
);
CREATE INDEX exposures_experiment ON exposures(experiment_id) WHERE experiment_id IS NOT NULL;
CREATE INDEX exposures_asset ON exposures(asset_id);
CREATE INDEX exposures_revision ON exposures(revision_id) WHERE revision_id IS NOT NULL;

ALTER TABLE revisions ADD COLUMN prompt_version_id BIGINT REFERENCES prompt_versions(id);
ALTER TABLE revisions ADD COLUMN experiment_id BIGINT REFERENCES experiments(id);
