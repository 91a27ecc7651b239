//! Tools of the Model Context Protocol, on top of the one [`Captioner`].
//!
//! [`Tools`] is a server in the sense of the protocol, whatever carries its messages: standard input and
//! output for `cutline mcp`, HTTP for `/mcp`. What differs between the two is a [`Backend`].
//!
//! - `definitions`: the tools as clients see them;
//! - `arguments`: what a call asks for;
//! - `output`: the results, from which the schemas of the definitions are made;
//! - `folders`: files in the folders that were given at the start, and no others.
//!
//! What goes wrong in a call is a result with `isError` and a sentence, because a model reads results and
//! never sees errors of the protocol. Only the name of an unknown tool is such an error, as the protocol
//! demands.

mod arguments;
mod definitions;
mod folders;
mod output;

use std::time::Duration;

use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData,
    Implementation, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
    Tool as Definition,
};
use rmcp::service::{RequestContext, RoleServer};
use tokio::time::timeout;

use self::arguments::{Arguments, Source};
use self::definitions::Tool;
pub use self::folders::Folders;
use self::output::Output;
use crate::captioner::{
    Budget, Caption, Captioner, Decoders, Photo, ProcessedImage, Tag, Tagger, tags,
};
use cutline_error::{Error, Result};

/// What the tools need of the program that offers them.
pub trait Backend: Send + Sync + 'static {
    /// The captioner, once it is loaded.
    fn captioner(&self) -> impl Future<Output = Result<Captioner>> + Send;

    /// The tags that photos may get: `TAG_VOCABULARY`; `None` for any words of captions.
    ///
    /// # Errors
    /// It cannot be read.
    fn tagger(&self, captioner: &Captioner) -> impl Future<Output = Result<Option<Tagger>>> + Send;

    /// The threads that decode images. They work before the model is loaded.
    ///
    /// # Errors
    /// [`ShuttingDown`](cutline_error::ErrorKind::ShuttingDown).
    fn decoders(&self) -> Result<Decoders>;

    /// The image in a text: base64 or a `data:` URI.
    ///
    /// # Errors
    /// [`MalformedRequest`](cutline_error::ErrorKind::MalformedRequest) or
    /// [`ImageTooLarge`](cutline_error::ErrorKind::ImageTooLarge).
    fn decode(&self, text: String) -> Result<Photo>;

    /// The image at an address.
    ///
    /// # Errors
    /// Images are not fetched, or this one did not arrive.
    fn fetch(&self, url: &str, budget: &Budget) -> impl Future<Output = Result<Photo>> + Send;

    /// Whether [`fetch`](Self::fetch) may succeed.
    fn fetches(&self) -> bool;

    /// The folders that may be read; `None` if calls come from another machine.
    fn folders(&self) -> Option<&Folders>;

    /// How long a call may take.
    fn limit(&self) -> Option<Duration>;

    /// Learns how a call ended, and returns the sentence for an error.
    fn ended(&self, result: Result<&Done, Error>) -> String;
}

/// The result of a call, before it is put into words.
#[derive(Debug)]
pub enum Done {
    /// A caption, or an alternative text.
    Captioned(Box<Caption>),
    /// Tags, and the caption.
    Tagged(Box<Caption>, Vec<Tag>),
    /// Colours.
    Processed(Box<ProcessedImage>),
}

/// The tools as a server of the protocol.
#[derive(Debug)]
pub struct Tools<B> {
    backend: B,
}

impl<B: Backend> Tools<B> {
    /// Tools that work with `backend`.
    pub fn new(backend: B) -> Self {
        Self { backend }
    }

    async fn run(&self, tool: Tool, arguments: Arguments) -> Result<Done> {
        let photo = self.photo(arguments.source).await?;
        if tool == Tool::ImageColors {
            let processed = self.backend.decoders()?.process(photo).await?;
            return Ok(Done::Processed(Box::new(processed)));
        }
        let captioner = self.backend.captioner().await?;
        if tool == Tool::TagImage {
            let tagger = self.backend.tagger(&captioner).await?;
            let caption = captioner.caption(photo, arguments.params).await?;
            let found = match tagger {
                Some(tagger) => tagger.tags_in(&caption.captions),
                None => tags(&caption.captions),
            };
            return Ok(Done::Tagged(Box::new(caption), found));
        }
        let caption = captioner.caption(photo, arguments.params).await?;
        Ok(Done::Captioned(Box::new(caption)))
    }

    async fn photo(&self, source: Source) -> Result<Photo> {
        match source {
            Source::Image(text) => self.backend.decode(text),
            Source::Url(url) => {
                let decoders = self.backend.decoders()?;
                self.backend.fetch(&url, decoders.budget()).await
            }
            Source::Path(path) => {
                let folders = self.backend.folders().ok_or_else(arguments::no_paths)?;
                folders.read(path, self.backend.decoders()?.budget()).await
            }
        }
    }

    fn result(&self, tool: Tool, result: Result<Done>) -> CallToolResult {
        match result {
            Ok(done) => {
                self.backend.ended(Ok(&done));
                let Output { text, structured } = Output::of(tool, &done);
                let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
                result.structured_content = Some(structured);
                result
            }
            Err(error) => {
                let sentence = self.backend.ended(Err(error));
                CallToolResult::error(vec![ContentBlock::text(sentence)])
            }
        }
    }
}

impl<B: Backend> ServerHandler for Tools<B> {
    fn get_info(&self) -> ServerConfig {
        let server = Implementation::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .with_title("cutline")
            .with_description(env!("CARGO_PKG_DESCRIPTION"));
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(server)
            .with_instructions(definitions::instructions(&self.backend))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(definitions::all(&self.backend)))
    }

    fn get_tool(&self, name: &str) -> Option<Definition> {
        Some(Tool::named(name)?.definition(&self.backend))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let tool = Tool::named(&request.name).ok_or_else(|| {
            let known = Tool::ALL.map(Tool::name).join(", ");
            ErrorData::invalid_params(format!("there is no such tool; use one of {known}"), None)
        })?;
        let paths = self.backend.folders().is_some();
        let work = async {
            let arguments = Arguments::of(tool, request.arguments.unwrap_or_default(), paths)?;
            // Boxed: this future is large, and every future around it would be as well.
            Box::pin(self.run(tool, arguments)).await
        };
        let work = async {
            let Some(limit) = self.backend.limit() else { return work.await };
            let late = |_| Err(Error::too_late("answer", limit, "send a smaller image"));
            timeout(limit, work).await.unwrap_or_else(late)
        };
        tokio::select! {
            result = work => Ok(self.result(tool, result).into()),
            // Dropping the work cancels the caption. Nobody reads this answer.
            () = context.ct.cancelled() => {
                Err(ErrorData::internal_error("the call was cancelled", None))
            }
        }
    }
}
