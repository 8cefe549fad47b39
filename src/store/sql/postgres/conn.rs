//! One connection: its statements, and several of them in one flight.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Client, Error, Row, Statement};

use crate::store::sql::rows::Columns;

/// How long a connection may say nothing while something is asked of it: longer than the server lets a
/// statement take.
const SILENT_WITHIN: Duration = Duration::from_secs(70);

/// A connection with what was prepared on it.
///
/// A server that is there and says nothing, as one that stands still does, is noticed by nobody else:
/// the system sees that it takes what is sent. So a connection that is silent for too long is ended,
/// from which all who wait for it learn that it is lost.
pub(super) struct Conn {
    client: Client,
    /// Carries its messages.
    carrier: AbortHandle,
    statements: Mutex<HashMap<String, Statement>>,
    /// Questions whose asker has not heard the answer, be it that he went away.
    unheard: AtomicUsize,
}

/// A statement with its parameters.
pub(super) struct Step<'a> {
    text: String,
    types: &'static [Type],
    params: Vec<Param<'a>>,
}

/// The value of a parameter.
pub(super) type Param<'a> = Box<dyn ToSql + Sync + Send + 'a>;

impl<'a> Step<'a> {
    /// A statement without parameters.
    pub(super) fn of(text: impl Into<String>) -> Self {
        Self::with(text, Vec::new())
    }

    /// A statement with parameters whose types follow from the text.
    pub(super) fn with(text: impl Into<String>, params: Vec<Param<'a>>) -> Self {
        Self::typed(text, &[], params)
    }

    /// A statement with parameters of these types, which the text need not make use of.
    pub(super) fn typed(
        text: impl Into<String>,
        types: &'static [Type],
        params: Vec<Param<'a>>,
    ) -> Self {
        Self {
            text: text.into(),
            types,
            params,
        }
    }
}

impl Conn {
    /// `carrier` is the task that carries the connection's messages.
    pub(super) fn new(client: Client, carrier: AbortHandle) -> Self {
        Self {
            client,
            carrier,
            statements: Mutex::default(),
            unheard: AtomicUsize::new(0),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether something was asked of it to which nobody has heard the answer. When nobody waits for it any
    /// more, it may be under way all the same.
    pub(super) fn is_asked(&self) -> bool {
        self.unheard.load(Ordering::Relaxed) > 0
    }

    /// By which the server is told to cancel what it does there.
    pub(super) fn cancel_token(&self) -> CancelToken {
        self.client.cancel_token()
    }

    /// Ends the transaction, if there is one. When it is answered, so is all that was asked before, and the
    /// connection is as good as new.
    pub(super) async fn roll_back(&self) -> Result<(), Error> {
        self.run("ROLLBACK").await?;
        self.unheard.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that something is asked until `work` has heard the answer.
    async fn heard<T>(&self, work: impl Future<Output = T>) -> T {
        self.unheard.fetch_add(1, Ordering::Relaxed);
        let done = work.await;
        self.unheard.fetch_sub(1, Ordering::Relaxed);
        done
    }

    /// Ends it, whatever is under way there.
    pub(super) fn end(&self) {
        self.carrier.abort();
    }

    /// Waits for `work` on it until then, when it is ended and the work fails.
    pub(super) async fn until<T>(&self, then: Instant, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(done) = timeout_at(then, &mut work).await {
            return done;
        }
        self.end();
        work.await
    }

    /// The same, for as long as a statement may take.
    async fn patiently<T>(&self, work: impl Future<Output = T>) -> T {
        let work = self.until(Instant::now() + SILENT_WITHIN, work);
        self.heard(work).await
    }

    /// Runs one statement.
    pub(super) async fn query(&self, step: Step<'_>) -> Result<Vec<Row>, Error> {
        let mut done = self.flight(&[step]).await?;
        done.pop().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Sends all of the statements, in this order and without waiting in between, and answers what
    /// became of each, up to one that cannot be sent. Fails, with nothing sent, if one of them cannot be
    /// prepared.
    pub(super) async fn flight(
        &self,
        steps: &[Step<'_>],
    ) -> Result<Vec<Result<Vec<Row>, Error>>, Error> {
        Ok(self.prepare(steps).await?.answers().await)
    }

    /// Prepares statements that are to be sent together.
    pub(super) async fn prepare<'f>(&'f self, steps: &'f [Step<'f>]) -> Result<Flight<'f>, Error> {
        // All are prepared before the first one is sent: one that has to be prepared on the way
        // would be overtaken by those behind it, by a commit even.
        let mut statements = Vec::with_capacity(steps.len());
        for step in steps {
            statements.push(self.statement(&step.text, step.types).await?);
        }
        Ok(Flight {
            conn: self,
            statements,
            steps,
        })
    }

    /// Sends a statement that nobody waits for.
    pub(super) fn send(&self, text: &str) {
        // The first poll sends it; the answer is dropped when it comes.
        drop(self.client.batch_execute(text).now_or_never());
    }

    /// Runs texts that cannot be prepared.
    pub(super) async fn run(&self, text: &str) -> Result<(), Error> {
        self.patiently(self.run_for_long(text)).await
    }

    /// The same, however long it takes.
    pub(super) async fn run_for_long(&self, text: &str) -> Result<(), Error> {
        self.client.batch_execute(text).await
    }

    async fn statement(&self, text: &str, types: &'static [Type]) -> Result<Statement, Error> {
        let known = self.lock().get(text).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let preparing = self.client.prepare_typed(text, types);
        let statement = self.patiently(preparing).await?;
        self.lock().insert(text.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Nothing panics under this lock, so a poisoned one is good.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Statement>> {
        self.statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Statements that only have to be sent.
pub(super) struct Flight<'f> {
    conn: &'f Conn,
    statements: Vec<Statement>,
    steps: &'f [Step<'f>],
}

impl Flight<'_> {
    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Sends all of them when it is first polled, so that nothing comes in between, and answers what became
    /// of each. Behind one that fails before it is sent none is sent, nor answered: a commit there would
    /// commit what is only a part.
    pub(super) async fn answers(self) -> Vec<Result<Vec<Row>, Error>> {
        let params: Vec<Vec<&(dyn ToSql + Sync)>> = self
            .steps
            .iter()
            .map(|step| step.params.iter().map(|param| &**param as _).collect())
            .collect();
        let queries = self.statements.iter().zip(&params);
        let client = &self.conn.client;
        let queries = queries.map(|(statement, params)| client.query(statement, params));
        let answers = in_order(queries, SILENT_WITHIN, || self.conn.end());
        self.conn.heard(answers).await
    }
}

/// Polls futures in their order, so that they begin in their order, until all are done. One that fails
/// as soon as it begins is the last one that begins. Calls `end`, which has to have them end, when none
/// is done for so long.
async fn in_order<F, T, E>(
    futures: impl Iterator<Item = F>,
    silent_within: Duration,
    end: impl Fn(),
) -> Vec<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    let mut begun = false;
    let mut silent = pin!(sleep(silent_within));
    poll_fn(|cx| {
        let (mut left, mut heard) = (false, false);
        for at in 0..waiting.len() {
            if done[at].is_some() {
                continue;
            }
            match waiting[at].as_mut().poll(cx) {
                Poll::Ready(output) => {
                    heard = true;
                    let failed = output.is_err();
                    done[at] = Some(output);
                    if failed && !begun {
                        waiting.truncate(at + 1);
                        break;
                    }
                }
                Poll::Pending => left = true,
            }
        }
        begun = true;
        if !left {
            return Poll::Ready(());
        }
        if heard {
            silent.as_mut().reset(Instant::now() + silent_within);
        }
        if silent.as_mut().poll(cx).is_ready() {
            end();
        }
        Poll::Pending
    })
    .await;
    done.into_iter().flatten().collect()
}

impl Columns for Row {
    type Error = Error;

    fn int(&self, column: usize) -> Result<i64, Error> {
        match *self.columns()[column].type_() {
            Type::INT2 => self.try_get::<_, i16>(column).map(i64::from),
            Type::INT4 => self.try_get::<_, i32>(column).map(i64::from),
            _ => self.try_get(column),
        }
    }

    fn maybe_int(&self, column: usize) -> Result<Option<i64>, Error> {
        match *self.columns()[column].type_() {
            Type::INT2 => self
                .try_get::<_, Option<i16>>(column)
                .map(|number| number.map(i64::from)),
            Type::INT4 => self
                .try_get::<_, Option<i32>>(column)
                .map(|number| number.map(i64::from)),
            _ => self.try_get(column),
        }
    }

    fn bytes(&self, column: usize) -> Result<Bytes, Error> {
        let bytes: Option<&[u8]> = self.try_get(column)?;
        Ok(bytes.map_or_else(Bytes::new, Bytes::copy_from_slice))
    }

    fn text(&self, column: usize) -> Result<String, Error> {
        self.try_get(column)
    }
}

/// The columns of a row behind the first few.
pub(super) struct Behind<'a>(pub(super) &'a Row, pub(super) usize);

impl Columns for Behind<'_> {
    type Error = Error;

    fn int(&self, column: usize) -> Result<i64, Error> {
        self.0.int(self.1 + column)
    }

    fn maybe_int(&self, column: usize) -> Result<Option<i64>, Error> {
        self.0.maybe_int(self.1 + column)
    }

    fn bytes(&self, column: usize) -> Result<Bytes, Error> {
        self.0.bytes(self.1 + column)
    }

    fn text(&self, column: usize) -> Result<String, Error> {
        self.0.text(self.1 + column)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::sync::{oneshot, watch};

    use super::*;

    #[tokio::test]
    async fn futures_begin_in_their_order_before_any_is_waited_for() {
        let begun = RefCell::new(Vec::new());
        let (tell, told) = oneshot::channel();
        let told = RefCell::new(Some(told));
        let tell = RefCell::new(Some(tell));
        let futures = (0..50).map(async |number| {
            begun.borrow_mut().push(number);
            let told = told.borrow_mut().take();
            match told {
                // The first one waits for what the last one says.
                Some(told) => told.await.unwrap(),
                None if number == 49 => tell.take().unwrap().send(()).unwrap(),
                None => tokio::task::yield_now().await,
            }
            Ok::<_, ()>(number)
        });
        let done = in_order(futures, SILENT_WITHIN, || {}).await;
        assert_eq!(done, (0..50).map(Ok).collect::<Vec<_>>());
        assert_eq!(*begun.borrow(), (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn nothing_begins_behind_what_fails_at_once() {
        let begun = RefCell::new(Vec::new());
        let futures = (0..5).map(async |number| {
            begun.borrow_mut().push(number);
            if number == 2 {
                return Err(number);
            }
            tokio::task::yield_now().await;
            if number == 1 { Err(number) } else { Ok(number) }
        });
        let done = in_order(futures, SILENT_WITHIN, || {}).await;
        assert_eq!(done, [Ok(0), Err(1), Err(2)]);
        assert_eq!(*begun.borrow(), [0, 1, 2]);
    }

    #[tokio::test]
    async fn what_says_nothing_for_too_long_is_ended_and_no_sooner() {
        let start = Instant::now();
        let (end, ended) = watch::channel(false);
        let futures = [500, 1000, 60_000].map(|after_ms| {
            let mut ended = ended.clone();
            async move {
                tokio::select! {
                    () = sleep(Duration::from_millis(after_ms)) => Ok(after_ms),
                    _ = ended.changed() => Err(start.elapsed()),
                }
            }
        });
        let end = || {
            end.send_replace(true);
        };
        let done = in_order(futures.into_iter(), Duration::from_secs(1), end).await;
        assert_eq!(done[..2], [Ok(500), Ok(1000)]);
        assert!(
            done[2].is_err_and(|at| at >= Duration::from_secs(2)),
            "{done:?}"
        );
    }
}
