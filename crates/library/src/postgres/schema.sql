-- Version 1. Times are milliseconds since 1970, in UTC. The tables are those of SQLite; names, labels and
-- authors may be longer than a B-tree takes, so hashes find them, and the lock of whoever writes keeps
-- them apart.

CREATE TABLE assets(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  hash BYTEA NOT NULL UNIQUE CHECK(length(hash) = 32),
  version BIGINT NOT NULL DEFAULT 1,
  format TEXT,
  width BIGINT,
  height BIGINT,
  bytes BIGINT,
  dhash BIGINT,
  taken_at BIGINT,
  -- When it was taken, or else added: the order of the gallery.
  at BIGINT NOT NULL,
  added_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  -- [["d2b48c", "tan", 40], …]
  colors TEXT,
  mood TEXT,
  -- Of the current English caption.
  confidence DOUBLE PRECISION
);
CREATE INDEX assets_at ON assets(at, id);
CREATE INDEX assets_confidence ON assets(confidence, id) WHERE confidence IS NOT NULL;

CREATE TABLE names(
  asset_id BIGINT NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  kind SMALLINT NOT NULL,
  name TEXT COLLATE "C" NOT NULL,
  size BIGINT,
  modified_at BIGINT,
  seen_at BIGINT NOT NULL
);
CREATE INDEX names_asset ON names(asset_id);
CREATE INDEX names_name ON names USING hash(name);

CREATE TABLE authors(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind SMALLINT NOT NULL,
  name TEXT COLLATE "C" NOT NULL,
  digest TEXT COLLATE "C" NOT NULL,
  parameters TEXT COLLATE "C" NOT NULL,
  prompt TEXT COLLATE "C" NOT NULL
);
CREATE INDEX authors_parameters ON authors USING hash(parameters);

CREATE TABLE runs(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind TEXT NOT NULL,
  parameters TEXT NOT NULL,
  author_id BIGINT NOT NULL REFERENCES authors(id),
  started_at BIGINT NOT NULL,
  finished_at BIGINT
);

-- Rows are added and never changed; they are removed with their photo only.
CREATE TABLE revisions(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  asset_id BIGINT NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  field SMALLINT NOT NULL,
  lang TEXT COLLATE "C" NOT NULL,
  action SMALLINT NOT NULL,
  text TEXT COLLATE "C" NOT NULL,
  -- Who wrote the text, and who did this, if it was somebody else.
  author_id BIGINT NOT NULL REFERENCES authors(id),
  actor_id BIGINT REFERENCES authors(id),
  confidence DOUBLE PRECISION,
  -- A person decided about this text.
  reviewed BOOLEAN NOT NULL,
  -- The revision that it accepts, rejects, takes back or returns to, and the current one before it.
  of_id BIGINT,
  previous_id BIGINT,
  run_id BIGINT REFERENCES runs(id),
  created_at BIGINT NOT NULL
);
CREATE INDEX revisions_asset ON revisions(asset_id);
CREATE INDEX revisions_run ON revisions(run_id, id) WHERE run_id IS NOT NULL;

-- What is shown, and what waits. A text that is only suggested has no revision.
CREATE TABLE current(
  asset_id BIGINT NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  field SMALLINT NOT NULL,
  lang TEXT COLLATE "C" NOT NULL,
  revision_id BIGINT REFERENCES revisions(id) ON DELETE CASCADE,
  suggestion_id BIGINT REFERENCES revisions(id) ON DELETE CASCADE,
  PRIMARY KEY(asset_id, field, lang)
);
-- For the deletion of revisions.
CREATE INDEX current_revision ON current(revision_id);
CREATE INDEX current_suggestion ON current(suggestion_id) WHERE suggestion_id IS NOT NULL;

-- Colours, moods, models, tags and states, for filters. They follow from the other tables.
CREATE TABLE labels(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind TEXT COLLATE "C" NOT NULL,
  value TEXT COLLATE "C" NOT NULL,
  -- Photos that have it.
  uses BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX labels_value ON labels USING hash(value);
CREATE TABLE asset_labels(
  label_id BIGINT NOT NULL REFERENCES labels(id),
  asset_id BIGINT NOT NULL,
  PRIMARY KEY(label_id, asset_id)
);

CREATE TABLE spaces(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name TEXT COLLATE "C" NOT NULL,
  dim BIGINT NOT NULL
);
-- Numbers of two bytes, of a vector of length 1. A new vector gets a new row.
CREATE TABLE features(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  asset_id BIGINT NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  space_id BIGINT NOT NULL REFERENCES spaces(id),
  vector BYTEA NOT NULL
);
-- They look like noise: to compress them takes time for nothing.
ALTER TABLE features ALTER COLUMN vector SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX features_asset ON features(asset_id, space_id);

CREATE TABLE thumbnails(
  asset_id BIGINT PRIMARY KEY REFERENCES assets(id) ON DELETE CASCADE,
  media_type TEXT NOT NULL,
  bytes BYTEA NOT NULL
);
ALTER TABLE thumbnails ALTER COLUMN bytes SET STORAGE EXTERNAL;

CREATE TABLE feedback(
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  asset_id BIGINT NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  revision_id BIGINT NOT NULL REFERENCES revisions(id) ON DELETE CASCADE,
  kind SMALLINT NOT NULL,
  reason TEXT NOT NULL,
  edit_distance DOUBLE PRECISION,
  author_id BIGINT NOT NULL REFERENCES authors(id),
  created_at BIGINT NOT NULL
);
CREATE INDEX feedback_asset ON feedback(asset_id);
CREATE INDEX feedback_revision ON feedback(revision_id);

-- Counts removals of features, so that other processes notice.
CREATE TABLE counters(name TEXT PRIMARY KEY, value BIGINT NOT NULL);
INSERT INTO counters VALUES('features_removed', 0);

-- What the index was made of. The program replaces the words of a photo in the index in the transaction
-- that changes them.
CREATE VIEW documents(id, caption, alt_text, tags, names) AS
SELECT a.id,
  (SELECT string_agg(r.text, chr(10) ORDER BY c.lang) FROM current c
   JOIN revisions r ON r.id = c.revision_id WHERE c.asset_id = a.id AND c.field = 0),
  (SELECT string_agg(r.text, chr(10) ORDER BY c.lang) FROM current c
   JOIN revisions r ON r.id = c.revision_id WHERE c.asset_id = a.id AND c.field = 1),
  (SELECT string_agg(r.text, chr(10) ORDER BY c.lang) FROM current c
   JOIN revisions r ON r.id = c.revision_id WHERE c.asset_id = a.id AND c.field = 2),
  (SELECT string_agg(n.name, chr(10) ORDER BY n.kind, n.name) FROM names n WHERE n.asset_id = a.id)
FROM assets a;
CREATE TABLE words(
  asset_id BIGINT PRIMARY KEY REFERENCES assets(id) ON DELETE CASCADE,
  words TSVECTOR NOT NULL
);
CREATE INDEX words_words ON words USING gin(words);
