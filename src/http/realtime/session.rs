//! One connection, from the handshake to its end.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant as StdInstant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tungstenite::protocol::frame::coding::CloseCode;

use super::entrance::{Entrance, InProgress};
use super::events::RealtimeEvent;
use super::outbox::{self, Outbox};
use super::reader::{Incoming, Kind, Message, MessageReader};
use super::requests::{CaptionRequest, Requests, Source};
use super::{Closing, PATH};
use cutline_library::Scope;

use crate::accounts::Visit;
use crate::captioner::{Account, Budget, CaptionParams, Captioner, Photo};
use crate::http::auth::Client;
use crate::http::extract::{self, BadMessage, CaptionCommand, Command, CommandImage};
use crate::http::observe::MessageLog;
use crate::http::prompts::Templates;
use crate::http::state::AppState;
use cutline_error::{Error, ErrorKind, Result};

/// Time for the client to read the last frame and to answer it.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Serves the client until one of the two closes the connection.
pub(super) async fn serve<S>(io: S, entrance: Entrance, client: Client, budget: &Budget)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let state = entrance.state.clone();
    let (reading, writing) = tokio::io::split(io);
    let (outbox, frames) = Outbox::new();
    let writer = tokio::spawn(outbox::write(writing, frames));
    let limits = extract::message_limits(state.settings(), budget);
    let draining = state.watch_draining();
    let mut session = Session {
        reader: MessageReader::new(reading, entrance, budget.clone(), limits),
        state,
        client,
        outbox,
        requests: Requests::default(),
        draining,
        pinged: Instant::now(),
    };
    let closing = session.run().await;
    session.requests.cancel_all();
    let reading = session.reader.into_inner();
    close(closing, reading, session.outbox, writer).await;
}

struct Session<R> {
    state: AppState,
    client: Client,
    reader: MessageReader<R>,
    outbox: Outbox,
    requests: Requests,
    draining: watch::Receiver<bool>,
    pinged: Instant,
}

impl<R: AsyncRead + Unpin> Session<R> {
    /// Answers messages. Returns why the connection ends.
    async fn run(&mut self) -> Closing {
        loop {
            let busy = !self.requests.is_finished();
            let stopping = *self.draining.borrow_and_update();
            if stopping && !busy && !self.reader.is_receiving() {
                return Closing::away("the server is stopping; connect again, to another server");
            }
            let due = self.due(busy);
            let handled = tokio::select! {
                // In this order, so that a client that was heard late is not taken for silent.
                biased;
                incoming = self.reader.next() => match incoming {
                    Ok(incoming) => self.handle(incoming).await,
                    Err(closing) => Err(closing),
                },
                () = self.requests.ended() => Ok(()),
                _ = self.draining.changed(), if !stopping => Ok(()),
                () = self.outbox.closed() => Err(Closing::Gone),
                () = sleep_until(due) => self.overdue(busy),
            };
            if let Err(closing) = handled {
                return closing;
            }
        }
    }

    /// How long the client may be silent.
    fn patience(&self) -> Duration {
        self.state.settings().idle_timeout
    }

    /// When the client is pinged: only while it waits for an answer, so that a connection without
    /// requests is idle.
    fn ping_due(&self) -> Instant {
        self.pinged.max(self.reader.heard()) + self.patience() / 3
    }

    /// The time of the next thing that happens without the client.
    fn due(&self, busy: bool) -> Instant {
        let silent = self.reader.heard() + self.patience();
        if busy { silent.min(self.ping_due()) } else { silent }
    }

    fn overdue(&mut self, busy: bool) -> Result<(), Closing> {
        let now = Instant::now();
        if self.reader.heard() + self.patience() <= now {
            return Err(Closing::away("nothing was heard of the client for too long"));
        }
        if busy && self.ping_due() <= now {
            self.pinged = now;
            self.outbox.ping();
        }
        Ok(())
    }

    async fn handle(&mut self, incoming: Incoming) -> Result<(), Closing> {
        match incoming {
            Incoming::Message(message) => self.message(message).await,
            Incoming::Refused(Message { bytes, begin, progress, .. }, error) => {
                let id = extract::id_in(&bytes);
                let bad = self.counted(BadMessage { id, error });
                self.refuse(bad, begin, progress).await
            }
            Incoming::Ping(payload) => Ok(self.outbox.pong(payload).await?),
            Incoming::Pong => Ok(()),
            Incoming::Close(code) => Err(Closing::With(code.unwrap_or(CloseCode::Normal), "")),
        }
    }

    async fn message(&mut self, message: Message) -> Result<(), Closing> {
        let Message { kind, mut bytes, mut permit, begin, progress } = message;
        let max_bytes = self.state.settings().max_image_bytes;
        let head = match kind {
            Kind::Text => Some(bytes.len()),
            Kind::Binary => extract::head_length(&bytes),
        };
        let command = head
            .ok_or_else(extract::no_head)
            .and_then(|length| extract::command(&bytes[..length], max_bytes, kind == Kind::Binary));
        match command {
            Ok(Command::Caption(command)) => {
                let CaptionCommand { id, image, params } = *command;
                let mut photo = |image: Vec<u8>| {
                    let permit = permit.split(image.len() as u64);
                    Source::Sent(Photo::new(image, permit))
                };
                let source = match image {
                    CommandImage::Here(image) => photo(image),
                    CommandImage::Behind => {
                        bytes.drain(..=head.unwrap_or(0));
                        photo(bytes)
                    }
                    CommandImage::At(url) => Source::At(url, self.state.fetcher().clone()),
                };
                self.caption(id, params, source, begin, progress).await
            }
            Ok(Command::Cancel(id)) => self.cancel(&id).await,
            Ok(Command::Ping(id)) => {
                Ok(self.outbox.event(&RealtimeEvent::Pong { id: id.as_deref() }).await?)
            }
            Err(bad) => self.refuse(self.counted(bad), begin, progress).await,
        }
    }

    /// Counts a bad message like a request, so that the client is refused for its rate if it sends many.
    fn counted(&self, BadMessage { id, error }: BadMessage) -> BadMessage {
        let error = self.state.guard().count(&self.client).err().unwrap_or(error);
        BadMessage { id, error }
    }

    async fn caption(
        &mut self,
        id: String,
        params: CaptionParams,
        source: Source,
        begin: StdInstant,
        progress: InProgress,
    ) -> Result<(), Closing> {
        let (captioner, visit) = match self.admit(&id, &source) {
            Ok(admitted) => admitted,
            Err(bad) => return self.refuse(bad, begin, progress).await,
        };
        self.requests.start(CaptionRequest {
            id,
            source,
            params,
            captioner,
            templates: Templates::for_client(&self.state, &self.client),
            visit,
            limit: self.state.settings().request_timeout,
            log: self.log(begin),
            outbox: self.outbox.clone(),
            progress,
        });
        Ok(())
    }

    /// Decides whether a caption may begin.
    fn admit(&self, id: &str, source: &Source) -> Result<(Captioner, Option<Visit>), BadMessage> {
        let settings = self.state.settings();
        if self.requests.contains(id) {
            let detail = format!(
                "a request with the id {id:?} is in progress on this connection; choose another id"
            );
            // Without the id, which is that of the other request.
            return Err(BadMessage { id: None, error: Error::parameter("id", detail) });
        }
        let admitted = || {
            // The key may have lost its scope since the connection began.
            if let Some(account) = self.client.account() {
                account.check(Some(Scope::Caption))?;
            }
            let visit = self.state.guard().count(&self.client)?;
            let most = settings.max_images_per_request;
            if self.requests.len() >= most {
                let detail = format!(
                    "a connection may have {most} requests in progress; wait until one has ended"
                );
                return Err(Error::new(ErrorKind::RateLimited, detail));
            }
            if let Source::Sent(photo) = source {
                extract::within(photo, settings.max_image_bytes)?;
            }
            let account = self.client.account().cloned();
            let payer = account.map(|account| account as Arc<dyn Account>);
            Ok((self.state.captioner()?.charged_to(payer), visit))
        };
        admitted().map_err(|error| BadMessage { id: Some(id.to_owned()), error })
    }

    async fn cancel(&mut self, id: &str) -> Result<(), Closing> {
        if self.requests.cancel(id).await {
            return Ok(self.outbox.event(&RealtimeEvent::Cancelled { id }).await?);
        }
        // Usual for a request that has just ended, so neither logged nor counted.
        let detail =
            format!("no request with the id {id:?} is in progress; it has ended, or never began");
        let error = Error::parameter("id", detail);
        Ok(self.outbox.event(&RealtimeEvent::error(None, &error, None)).await?)
    }

    /// Answers a message that begins no request.
    async fn refuse(
        &mut self,
        bad: BadMessage,
        begin: StdInstant,
        progress: InProgress,
    ) -> Result<(), Closing> {
        let log = self.log(begin);
        // Only what ends no other request has an id.
        let id = bad.id.filter(|id| !self.requests.contains(id));
        let event = RealtimeEvent::error(id.as_deref(), &bad.error, Some(log.request_id()));
        self.outbox.last(&event, progress).await?;
        log.finish(&Err(bad.error));
        Ok(())
    }

    fn log(&self, begin: StdInstant) -> MessageLog {
        MessageLog::begin(PATH, begin, self.state.metrics().clone())
    }
}

/// Sends the last frame and waits until the client has read it. A client that has left gets none.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    closing: Closing,
    mut reading: ReadHalf<S>,
    outbox: Outbox,
    mut writer: JoinHandle<std::io::Result<WriteHalf<S>>>,
) {
    let farewell = async {
        let Closing::With(code, reason) = closing else { return };
        if outbox.close(code, reason).await.is_err() {
            return;
        }
        let Ok(Ok(mut writing)) = (&mut writer).await else { return };
        if writing.shutdown().await.is_err() {
            return;
        }
        // Closing with unread bytes would reset the connection, and the client would not see the frame.
        let mut rest = [0; 4096];
        while reading.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    };
    let _ = timeout(CLOSE_TIME, farewell).await;
    writer.abort();
}
