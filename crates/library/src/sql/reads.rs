//! The methods of [`Store`](crate::Store) that only read.

/// Those methods, for a store that has `read` and `read_long`, which run a closure in a transaction, and
/// `matrices` and `alike`. What differs between databases is written beside.
macro_rules! reads {
    () => {
        fn asset(&self, hash: &$crate::ContentHash) -> Result<Option<$crate::Asset>> {
            self.read(|db| $crate::sql::read::asset(db, hash))
        }

        fn named(
            &self,
            kind: $crate::NameKind,
            name: &str,
        ) -> Result<Vec<($crate::ContentHash, $crate::Name)>> {
            self.read(|db| $crate::sql::read::named(db, kind, name))
        }

        fn history(&self, hash: &$crate::ContentHash) -> Result<Option<Vec<$crate::Revision>>> {
            self.read(|db| $crate::sql::read::history(db, hash))
        }

        fn thumbnail(&self, hash: &$crate::ContentHash) -> Result<Option<$crate::Thumbnail>> {
            self.read(|db| $crate::sql::read::thumbnail(db, hash))
        }

        fn find(&self, query: &$crate::Query) -> Result<$crate::store::Page> {
            let request = $crate::sql::find::Request::new(query)?;
            self.read(|db| $crate::sql::find::find(db, &request))
        }

        fn facets(&self, query: &$crate::Query) -> Result<Vec<$crate::store::Facet>> {
            let request = $crate::sql::find::Request::new(query)?;
            self.read(|db| $crate::sql::find::facets(db, &request))
        }

        fn similar(
            &self,
            similar: &$crate::features::Similar,
        ) -> Result<Vec<$crate::features::Neighbour>> {
            // The first call reads the features of all photos.
            self.read_long(|db| self.matrices.similar(db, similar))
        }

        fn near_duplicates(&self, max_bits: u32) -> Result<$crate::store::Groups> {
            self.read_long(|db| self.alike.groups(db, max_bits))
        }

        fn runs(&self, limit: usize) -> Result<Vec<$crate::store::Run>> {
            self.read(|db| $crate::sql::report::runs(db, limit))
        }

        fn run_revisions(
            &self,
            run: $crate::store::RunId,
            before: i64,
            limit: usize,
        ) -> Result<Vec<$crate::Revision>> {
            self.read(|db| $crate::sql::report::run_revisions(db, run, before, limit))
        }

        fn feedback_report(&self) -> Result<Vec<$crate::store::FeedbackRow>> {
            self.read($crate::sql::report::feedback)
        }

        fn training_pairs(
            &self,
            after: i64,
            limit: usize,
        ) -> Result<Vec<$crate::store::TrainingPair>> {
            self.read(|db| $crate::sql::report::training_pairs(db, after, limit))
        }

        fn keys(&self) -> Result<Vec<$crate::keys::ApiKey>> {
            self.read($crate::sql::keys::all)
        }

        fn key(&self, id: i64) -> Result<Option<$crate::keys::ApiKey>> {
            self.read(|db| $crate::sql::keys::find(db, id))
        }

        fn usage(&self, query: &$crate::usage::UsageQuery) -> Result<Vec<$crate::usage::UsageRow>> {
            self.read(|db| $crate::sql::keys::usage(db, query))
        }

        fn prompts(&self) -> Result<Vec<$crate::prompts::Prompt>> {
            self.read($crate::sql::prompts::prompts)
        }

        fn prompt(&self, name: &str) -> Result<Option<$crate::prompts::PromptHistory>> {
            self.read(|db| $crate::sql::prompts::history(db, name))
        }

        fn prompt_version(
            &self,
            name: &str,
            choice: &$crate::prompts::VersionChoice,
        ) -> Result<Option<$crate::prompts::PromptVersion>> {
            self.read(|db| $crate::sql::prompts::choose(db, name, choice))
        }

        fn experiments(&self, running: bool) -> Result<Vec<$crate::prompts::Experiment>> {
            self.read(|db| $crate::sql::prompts::experiments(db, running))
        }

        fn exposures(&self, experiment: i64) -> Result<Vec<$crate::prompts::ExposureRow>> {
            self.read_long(|db| $crate::sql::prompts::exposures(db, experiment))
        }

        fn vocabularies(&self) -> Result<Vec<$crate::vocabularies::StoredVocabulary>> {
            self.read($crate::sql::vocabularies::all)
        }

        fn vocabulary(
            &self,
            name: &str,
        ) -> Result<Option<$crate::vocabularies::VocabularyHistory>> {
            self.read(|db| $crate::sql::vocabularies::history(db, name))
        }

        fn vocabulary_content(
            &self,
            name: &str,
            version: Option<u32>,
        ) -> Result<Option<$crate::vocabularies::VocabularyContent>> {
            self.read(|db| $crate::sql::vocabularies::content(db, name, version))
        }
    };
}

pub(crate) use reads;
