//! The open arm of the filter chain: a filter of another crate, in every phase.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use meltemi_filters::http::{
    Beyond, Call, DataContext, DataEvent, Direction, DoneContext, Event, Extension,
    ExtensionFactory, Hold, Needs, RequestContext, ResponseContext, Step,
};
use meltemi_filters::{Cause, LocalReply, Rejection, Scope};
use meltemi_proto::google::protobuf::StringValue;
use meltemi_proto::{Any, pack};
use meltemi_proxy::ProxyOptions;

use crate::config::*;
use crate::peers::{self, Client};

/// What filters of this test have done, in order.
type Journal = Arc<Mutex<Vec<String>>>;

/// Does in each phase as its configuration says.
#[derive(Debug)]
struct Puppet {
    way: String,
    journal: Journal,
}

impl Puppet {
    fn note(&self, what: impl Into<String>) {
        self.journal.lock().expect("whole").push(what.into());
    }

    fn reply(&self) -> Step {
        let cause = Cause::Fault("puppet".into());
        LocalReply::new(418, "short and stout", "puppet", cause).into()
    }
}

fn hold(limit: usize) -> Step {
    Step::Hold(Hold {
        limit,
        beyond: Beyond::Refuse,
    })
}

/// What the puppet keeps of a stream.
struct Pieces(usize);

impl Extension for Puppet {
    fn needs(&self) -> Needs {
        Needs {
            response_head: true,
            request_data: self.way == "shout" || self.way == "refuse-data",
            response_data: self.way == "shout" || self.way == "gather",
            done: true,
        }
    }

    fn on_request(&self, event: Event<'_>, cx: &mut RequestContext<'_>) -> Step {
        cx.keep(Pieces(0));
        match (&*self.way, event) {
            ("sleep", Event::Head) => Step::Call(Call::Sleep(Duration::from_millis(1))),
            ("sleep", Event::Called(_)) => {
                self.note("slept");
                Step::Continue
            }
            _ => Step::Continue,
        }
    }

    fn on_response(&self, event: Event<'_>, cx: &mut ResponseContext<'_>) -> Step {
        match (&*self.way, event) {
            ("shout" | "gather", Event::Head) => {
                cx.head.remove("content-length");
                Step::Continue
            }
            ("reply", Event::Head) => self.reply(),
            ("hold", Event::Head) => hold(1000),
            ("hold-little", Event::Head) => hold(3),
            ("hold", Event::Held { body, ended }) => {
                self.note(format!("held {} {ended}", body.len()));
                cx.head.set("x-length", body.len().to_string().as_bytes());
                Step::Call(Call::Sleep(Duration::from_millis(1)))
            }
            ("hold", Event::Called(_)) => {
                self.note("called");
                Step::Continue
            }
            _ => Step::Continue,
        }
    }

    fn on_data(&self, which: Direction, event: DataEvent, cx: &mut DataContext<'_>) -> Step {
        match (&*self.way, event) {
            ("shout", DataEvent::Piece) => Step::Call(Call::Sleep(Duration::from_millis(1))),
            ("shout", DataEvent::Called(_)) => {
                let Pieces(n) = cx.take().expect("kept");
                cx.keep(Pieces(n + 1));
                cx.data.make_ascii_uppercase();
                if cx.ended {
                    cx.data.extend_from_slice(b"!");
                    self.note(format!("{which:?} ended"));
                }
                Step::Continue
            }
            ("gather", _) if !cx.ended => hold(1000),
            ("gather", _) => {
                cx.data.reverse();
                Step::Continue
            }
            ("refuse-data", _) => self.reply(),
            _ => Step::Continue,
        }
    }

    fn on_done(&self, cx: &mut DoneContext<'_>) {
        let Pieces(n) = cx.take().expect("kept");
        self.note(format!(
            "done {} after {} pieces",
            cx.response.status,
            n > 0
        ));
    }
}

#[derive(Debug)]
struct Factory(Journal);

impl ExtensionFactory for Factory {
    fn message(&self) -> &str {
        "google.protobuf.StringValue"
    }

    fn compile(&self, config: &Any, scope: &mut Scope) -> Result<Arc<dyn Extension>, Rejection> {
        let StringValue { value } = scope.unpack(config)?;
        Ok(Arc::new(Puppet {
            way: value,
            journal: self.0.clone(),
        }))
    }
}

/// A listener for each way.
async fn running(ways: &[&str]) -> (Running, Journal) {
    let journal = Journal::default();
    let running = Running::start(ProxyOptions {
        extensions: vec![Arc::new(Factory(journal.clone()))],
        ..ProxyOptions::default()
    });

    let up = static_cluster("up", &[peers::echo("up").await]);
    let listeners = ways.iter().map(|way| {
        let mut manager = manager(inline(table("r", vec![forward("/", "up")])));
        let config = StringValue {
            value: (*way).to_owned(),
        };
        let filter = http_filter("puppet", pack(&config));
        manager.http_filters.insert(0, filter);
        listener(way, vec![http_chain(&manager)])
    });
    running.apply(vec![up], listeners.collect()).await;

    (running, journal)
}

const POST: &str = "POST / HTTP/1.1\nhost: h\ncontent-length: 5\n\nhello";

fn noted(journal: &Journal) -> Vec<String> {
    std::mem::take(&mut *journal.lock().expect("whole"))
}

async fn wait_for(journal: &Journal, last: &str) -> Vec<String> {
    for _ in 0..200 {
        if journal
            .lock()
            .expect("whole")
            .iter()
            .any(|own| own.starts_with(last))
        {
            return noted(journal);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no {last}: {:?}", noted(journal));
}

#[tokio::test]
async fn data_phases_change_both_bodies() {
    let (running, journal) = running(&["shout", "gather"]).await;
    let mut client = Client::connect(running.at("shout").await).await;
    for _ in 0..2 {
        // The request grew by what the filter adds at its end: its length is not told any more.
        let request = "POST / HTTP/1.1\nhost: h\ntransfer-encoding: chunked\n\n5\nhello\n0\n\n";
        let (_, body) = client.ask(request).await;
        assert!(body.starts_with("UP\nPOST / HTTP/1.1"), "{body}");
        assert!(body.ends_with("HELLO!!"), "{body}");
        let journal = wait_for(&journal, "done").await;
        assert_eq!(
            journal,
            [
                "Request ended",
                "Response ended",
                "done 200 after true pieces"
            ]
        );
    }

    let (_, body) = Client::connect(running.at("gather").await)
        .await
        .ask(POST)
        .await;
    assert!(body.starts_with("olleh") && body.ends_with("pu"), "{body}");
}

#[tokio::test]
async fn response_heads_wait_for_calls_and_bodies() {
    let (running, journal) = running(&["sleep", "hold", "hold-little", "reply"]).await;
    let ask = async |way: &str| Client::connect(running.at(way).await).await.ask(POST).await;

    let (_, body) = ask("sleep").await;
    assert!(body.ends_with("hello"), "{body}");
    assert_eq!(wait_for(&journal, "done").await[0], "slept");

    let (head, body) = ask("hold").await;
    assert!(
        head.contains(&format!("x-length: {}\r\n", body.len())),
        "{head}"
    );
    let journal_of_hold = wait_for(&journal, "done").await;
    assert_eq!(
        journal_of_hold[..2],
        [format!("held {} true", body.len()), "called".into()]
    );

    let (head, _) = ask("hold-little").await;
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    let line = running.log.line_with("response_payload_too_large").await;
    assert!(line.contains("<body too large for puppet>"), "{line}");

    let (head, body) = ask("reply").await;
    assert!(head.starts_with("HTTP/1.1 418 "), "{head}");
    assert_eq!(body, "short and stout");
}

#[tokio::test]
async fn a_data_phase_answers_before_there_is_a_response() {
    let (running, _) = running(&["refuse-data"]).await;
    let mut client = Client::connect(running.at("refuse-data").await).await;
    let (head, body) = client.ask(POST).await;
    assert!(head.starts_with("HTTP/1.1 418 "), "{head}");
    assert_eq!(body, "short and stout");
}
