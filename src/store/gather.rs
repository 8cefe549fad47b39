//! Questions that arrive while others are on their way go together.
//!
//! Each request to etcd costs it, the network and this proxy far more than what is in it. So at
//! most [`LANES`] requests are on their way at a time; questions that come in meanwhile wait, and go
//! as one. No question waits for a timer, and one that comes alone goes at once.
//!
//! There is no task that does the work. Whoever finds a free lane takes his own question and those
//! that wait; when he is done, he hands the lane on to the first of those that came meanwhile. If he
//! goes away in the middle (his client did), the lane is handed on as well, and those whose questions
//! he had taken ask again. So this is for questions that may be asked twice.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Requests on their way at a time. One would make the largest batches; with two, one is carried out
/// while the other is put together.
const LANES: usize = 2;

/// Where questions meet.
pub(in crate::store) struct Gather<Q, A> {
    state: Arc<Mutex<State<Q, A>>>,
    /// Questions that go together at most.
    together_max: usize,
}

struct State<Q, A> {
    lanes_taken: usize,
    /// No longer than there are requests from clients: each waits for its question.
    waiting: VecDeque<Waiting<Q, A>>,
}

struct Waiting<Q, A> {
    question: Q,
    turn: oneshot::Sender<Turn<Q, A>>,
}

/// What becomes of a question that waits.
enum Turn<Q, A> {
    /// Somebody took it with his.
    Answered(A),
    /// It is first in the line for a lane that became free.
    Lead(Lane<Q, A>, Q),
}

/// The right to have a request on its way; handed on when dropped.
struct Lane<Q, A>(Arc<Mutex<State<Q, A>>>);

impl<Q: Clone + Send, A: Send> Gather<Q, A> {
    /// So many questions go together at most, at least one.
    pub(in crate::store) fn new(together_max: usize) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                lanes_taken: 0,
                waiting: VecDeque::new(),
            })),
            together_max,
        }
    }

    /// Asks `question`, with others where there are, and answers what `run` does. `run` answers all
    /// questions in their order.
    pub(in crate::store) async fn ask<F>(&self, question: Q, run: impl Fn(Vec<Q>) -> F) -> A
    where
        F: Future<Output = Vec<A>> + Send,
    {
        loop {
            let (lane, own) = match self.enter(&question) {
                Ok(lane) => (lane, question.clone()),
                Err(turn) => match turn.await {
                    Ok(Turn::Answered(answer)) => return answer,
                    Ok(Turn::Lead(lane, own)) => (lane, own),
                    // Whoever took the question went away.
                    Err(_) => continue,
                },
            };
            let mut questions = vec![own];
            let others = lane.take(self.together_max - 1, &mut questions);
            let mut answers = run(questions).await.into_iter();
            let own = answers.next();
            for (turn, answer) in others.into_iter().zip(answers) {
                // Whoever does not wait any more needs no answer.
                turn.send(Turn::Answered(answer)).ok();
            }
            drop(lane);
            if let Some(own) = own {
                return own;
            }
        }
    }

    /// A lane, if one is free; else the question waits.
    fn enter(&self, question: &Q) -> Result<Lane<Q, A>, oneshot::Receiver<Turn<Q, A>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lanes_taken < LANES {
            state.lanes_taken += 1;
            return Ok(Lane(Arc::clone(&self.state)));
        }
        let (turn, mine) = oneshot::channel();
        state.waiting.push_back(Waiting {
            question: question.clone(),
            turn,
        });
        Err(mine)
    }
}

impl<Q, A> Lane<Q, A> {
    /// Takes up to `most` of the questions that wait; answers who asked them.
    fn take(&self, most: usize, questions: &mut Vec<Q>) -> Vec<oneshot::Sender<Turn<Q, A>>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = most.min(state.waiting.len());
        let (taken, turns): (Vec<Q>, Vec<_>) = state
            .waiting
            .drain(..most)
            .filter(|waiting| !waiting.turn.is_closed())
            .map(|waiting| (waiting.question, waiting.turn))
            .unzip();
        questions.extend(taken);
        turns
    }
}

impl<Q, A> Drop for Lane<Q, A> {
    /// Hands the lane on. Where the next one goes away in that moment, the turn comes back unread
    /// and is dropped, and the lane in it is handed on once more.
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                match state.waiting.pop_front() {
                    Some(gone) if gone.turn.is_closed() => {}
                    Some(next) => break next,
                    None => {
                        state.lanes_taken -= 1;
                        return;
                    }
                }
            }
        };
        let lane = Self(Arc::clone(&self.0));
        drop(next.turn.send(Turn::Lead(lane, next.question)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// Answers each number with its double, as soon as it may, and counts the requests.
    struct Server {
        gather: Gather<u32, u32>,
        may: Semaphore,
        requests: AtomicUsize,
    }

    impl Server {
        fn new(together_max: usize) -> Arc<Self> {
            Arc::new(Self {
                gather: Gather::new(together_max),
                may: Semaphore::new(0),
                requests: AtomicUsize::new(0),
            })
        }

        async fn ask(&self, question: u32) -> u32 {
            self.gather
                .ask(question, async |questions: Vec<u32>| {
                    self.requests.fetch_add(1, Ordering::Relaxed);
                    self.may.acquire().await.unwrap().forget();
                    questions.iter().map(|question| question * 2).collect()
                })
                .await
        }

        fn requests(&self) -> usize {
            self.requests.load(Ordering::Relaxed)
        }

        /// Lets tasks go on until all of them wait: there is one thread, so turns are enough.
        async fn settle() {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn those_that_come_meanwhile_go_together_and_each_gets_its_own_answer() {
        let server = Server::new(50);
        let asked = join_all((0..100).map(|question| server.ask(question)));
        let permit = async {
            for _ in 0..2 {
                // Who leads next has to have taken the others before he may be done.
                Server::settle().await;
                server.may.add_permits(2);
            }
        };
        let (answers, ()) = futures_util::join!(asked, permit);
        assert_eq!(
            answers,
            (0..100).map(|number| number * 2).collect::<Vec<_>>()
        );
        // The first two by themselves, then 50 and 48.
        assert_eq!(server.requests(), 4);
        // Alone again, a question goes at once.
        server.may.add_permits(1);
        assert_eq!(server.ask(7).await, 14);
    }

    #[tokio::test]
    async fn no_lane_and_no_question_is_lost_when_askers_go_away() {
        for gone in 0..6 {
            let server = Server::new(3);
            let mut asked: Vec<_> = (0..6)
                .map(|question| {
                    let server = Arc::clone(&server);
                    crate::tasks::spawn_owned(async move { server.ask(question).await })
                })
                .collect();
            Server::settle().await;
            // Two are on their way and the others wait; then one of these leads the others.
            server.may.add_permits(usize::from(gone >= 3));
            Server::settle().await;
            asked.remove(gone).abort();
            Server::settle().await;
            server.may.add_permits(100);
            let answers = join_all(asked).await;
            let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
            let expected: Vec<_> = (0..6)
                .filter(|it| *it as usize != gone)
                .map(|it| it * 2)
                .collect();
            assert_eq!(answers, expected);
            let state = server.gather.state.lock().unwrap();
            assert_eq!((state.lanes_taken, state.waiting.len()), (0, 0), "{gone}");
        }
    }
}
