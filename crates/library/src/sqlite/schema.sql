-- Version 1. Times are milliseconds since 1970, in UTC.

CREATE TABLE assets(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  hash BLOB NOT NULL UNIQUE CHECK(length(hash) = 32),
  version INTEGER NOT NULL DEFAULT 1,
  format TEXT,
  width INTEGER,
  height INTEGER,
  bytes INTEGER,
  dhash INTEGER,
  taken_at INTEGER,
  -- When it was taken, or else added: the order of the gallery.
  at INTEGER NOT NULL,
  added_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  -- [["d2b48c", "tan", 40], …]
  colors TEXT,
  mood TEXT,
  -- Of the current English caption.
  confidence REAL
);
CREATE INDEX assets_at ON assets(at, id);
CREATE INDEX assets_confidence ON assets(confidence, id) WHERE confidence IS NOT NULL;

CREATE TABLE names(
  asset_id INTEGER NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  kind INTEGER NOT NULL,
  name TEXT NOT NULL,
  size INTEGER,
  modified_at INTEGER,
  seen_at INTEGER NOT NULL,
  PRIMARY KEY(asset_id, kind, name)
) WITHOUT ROWID;
CREATE INDEX names_name ON names(name, kind);

CREATE TABLE authors(
  id INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,
  name TEXT NOT NULL,
  digest TEXT NOT NULL,
  parameters TEXT NOT NULL,
  prompt TEXT NOT NULL,
  UNIQUE(kind, name, digest, parameters, prompt)
);

CREATE TABLE runs(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  parameters TEXT NOT NULL,
  author_id INTEGER NOT NULL REFERENCES authors(id),
  started_at INTEGER NOT NULL,
  finished_at INTEGER
);

-- Rows are added and never changed; they are removed with their photo only.
CREATE TABLE revisions(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  asset_id INTEGER NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  field INTEGER NOT NULL,
  lang TEXT NOT NULL,
  action INTEGER NOT NULL,
  text TEXT NOT NULL,
  -- Who wrote the text, and who did this, if it was somebody else.
  author_id INTEGER NOT NULL REFERENCES authors(id),
  actor_id INTEGER REFERENCES authors(id),
  confidence REAL,
  -- A person decided about this text.
  reviewed INTEGER NOT NULL,
  -- The revision that it accepts, rejects, takes back or returns to, and the current one before it.
  of_id INTEGER,
  previous_id INTEGER,
  run_id INTEGER REFERENCES runs(id),
  created_at INTEGER NOT NULL
);
CREATE INDEX revisions_asset ON revisions(asset_id);
CREATE INDEX revisions_run ON revisions(run_id) WHERE run_id IS NOT NULL;

-- What is shown, and what waits. A text that is only suggested has no revision.
CREATE TABLE current(
  asset_id INTEGER NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  field INTEGER NOT NULL,
  lang TEXT NOT NULL,
  revision_id INTEGER REFERENCES revisions(id) ON DELETE CASCADE,
  suggestion_id INTEGER REFERENCES revisions(id) ON DELETE CASCADE,
  PRIMARY KEY(asset_id, field, lang)
) WITHOUT ROWID;
-- For the deletion of revisions.
CREATE INDEX current_revision ON current(revision_id);
CREATE INDEX current_suggestion ON current(suggestion_id) WHERE suggestion_id IS NOT NULL;

-- Colours, moods, models, tags and states, for filters. They follow from the other tables.
CREATE TABLE labels(
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  value TEXT NOT NULL,
  -- Photos that have it.
  uses INTEGER NOT NULL DEFAULT 0,
  UNIQUE(kind, value)
);
CREATE TABLE asset_labels(
  label_id INTEGER NOT NULL REFERENCES labels(id),
  asset_id INTEGER NOT NULL,
  PRIMARY KEY(label_id, asset_id)
) WITHOUT ROWID;

CREATE TABLE spaces(
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  dim INTEGER NOT NULL
);
-- Numbers of two bytes, of a vector of length 1. A new vector gets a new row.
CREATE TABLE features(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  asset_id INTEGER NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  space_id INTEGER NOT NULL REFERENCES spaces(id),
  vector BLOB NOT NULL
);
CREATE UNIQUE INDEX features_asset ON features(asset_id, space_id);

CREATE TABLE thumbnails(
  asset_id INTEGER PRIMARY KEY REFERENCES assets(id) ON DELETE CASCADE,
  media_type TEXT NOT NULL,
  bytes BLOB NOT NULL
);

CREATE TABLE feedback(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  asset_id INTEGER NOT NULL REFERENCES assets(id) ON DELETE CASCADE,
  revision_id INTEGER NOT NULL REFERENCES revisions(id) ON DELETE CASCADE,
  kind INTEGER NOT NULL,
  reason TEXT NOT NULL,
  edit_distance REAL,
  author_id INTEGER NOT NULL REFERENCES authors(id),
  created_at INTEGER NOT NULL
);
CREATE INDEX feedback_asset ON feedback(asset_id);
CREATE INDEX feedback_revision ON feedback(revision_id);

-- Counts removals of features, so that other processes notice.
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES('features_removed', 0);

-- What the index was made of. The program removes the old words of a photo from the index and adds the
-- new ones, in the transaction that changes them.
CREATE VIEW documents(id, caption, alt_text, tags, names) AS
SELECT a.id,
  (SELECT group_concat(r.text, char(10)) FROM current c JOIN revisions r ON r.id = c.revision_id
   WHERE c.asset_id = a.id AND c.field = 0),
  (SELECT group_concat(r.text, char(10)) FROM current c JOIN revisions r ON r.id = c.revision_id
   WHERE c.asset_id = a.id AND c.field = 1),
  (SELECT group_concat(r.text, char(10)) FROM current c JOIN revisions r ON r.id = c.revision_id
   WHERE c.asset_id = a.id AND c.field = 2),
  (SELECT group_concat(n.name, char(10)) FROM names n WHERE n.asset_id = a.id)
FROM assets a;
CREATE VIRTUAL TABLE words USING fts5(
  caption, alt_text, tags, names,
  content = 'documents', content_rowid = 'id',
  tokenize = 'porter unicode61 remove_diacritics 2',
  prefix = '2 3'
);
-- Words of removed photos leave the index at once.
INSERT INTO words(words, rank) VALUES('secure-delete', 1);
