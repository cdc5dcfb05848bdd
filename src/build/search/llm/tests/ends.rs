use super::*;
use std::{net::TcpListener, sync::Mutex};

/// What is told once the model is given up, with the server's address as `HOST`.
fn remark(server: &ChatServer, settings: LlmSettings) -> String {
    let mut llm = llm(&server.url(), settings);
    assert_eq!(llm.ask(8), []);
    let remarks = llm.remarks();
    assert_eq!((remarks.len(), llm.ask(8), llm.remarks()), (1, vec![], vec![]), "{remarks:?}");
    assert!(!remarks[0].contains(KEY), "{remarks:?}");
    remarks[0].replace(&server.url()["http://".len()..], "HOST")
}

fn impatient() -> LlmSettings {
    LlmSettings { timeout: Duration::from_millis(200), attempts: 2, ..settings() }
}

#[test]
fn a_server_that_does_not_answer_in_time_is_given_up() {
    for behaviour in [Behaviour::Silence, Behaviour::Drip] {
        let server = ChatServer::start(vec![behaviour]);
        assert_eq!(
            remark(&server, impatient()),
            "llm: HOST did not answer within 200ms (2 attempts): the heuristic stands in"
        );
        assert_eq!(server.received().len(), 2);
    }
}

#[test]
fn a_server_that_is_not_there_is_given_up() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut it = llm(&format!("http://{port}/v1"), settings());
    assert_eq!(it.ask(8), []);
    let End::Unreachable { host, tried: 3, reason } = it.end().unwrap() else { panic!("{:?}", it.end()) };
    assert!(*host == port.to_string() && reason.contains("refused"), "{reason}");

    let server = ChatServer::start(vec![Behaviour::HangUp]);
    let mut it = llm(&server.url(), settings());
    assert_eq!(it.ask(8), []);
    assert_eq!(it.end().unwrap().code(), "llm::unreachable");
    assert_eq!(server.received().len(), 3);
}

#[test]
fn a_server_that_goes_on_failing_is_given_up() {
    let server = ChatServer::start(vec![Behaviour::status(500, r#"{"error": {"message": "out of\nmemory"}}"#)]);
    assert_eq!(
        remark(&server, settings()),
        "llm: HOST failed (status 500, 3 attempts): out of memory: the heuristic stands in"
    );
    let server = ChatServer::start(vec![Behaviour::status(429, "")]);
    assert_eq!(
        remark(&server, settings()),
        "llm: HOST takes no more requests for now (status 429, 3 attempts): the heuristic stands in"
    );
}

#[test]
fn a_refused_key_is_not_sent_again_nor_shown() {
    for status in [401, 403] {
        let server = ChatServer::start(vec![Behaviour::status(status, &format!("wrong key: {KEY}"))]);
        let told = format!("llm: HOST refused the key (status {status}): the heuristic stands in");
        assert_eq!(remark(&server, settings()), told);
        assert_eq!(server.received().len(), 1);
    }
}

#[test]
fn a_refused_request_says_why_without_the_key() {
    let server = ChatServer::start(vec![Behaviour::status(404, &format!("no model `small` for {KEY}"))]);
    let told = "llm: HOST refused the request (status 404): no model `small` for [key]: the heuristic stands in";
    assert_eq!(remark(&server, settings()), told);
    let server = ChatServer::start(vec![Behaviour::status(400, "never")]);
    let told = "llm: HOST refused the request (status 400): never: the heuristic stands in";
    assert_eq!(remark(&server, settings()), told);
    assert_eq!(server.received().len(), 3); // a schema, an object, neither
}

#[test]
fn a_redirect_does_not_take_the_key_along() {
    let elsewhere = ChatServer::start(vec![say(&[good(0)])]);
    for status in [301, 302, 307, 308] {
        let headers = vec![("Location", format!("{}/v1/chat/completions", elsewhere.url()))];
        let server = ChatServer::start(vec![Behaviour::Respond { status, headers, body: vec![] }]);
        assert!(remark(&server, settings()).contains("it redirects"));
    }
    assert_eq!(elsewhere.received().len(), 0);
}

#[test]
fn missing_and_broken_settings_are_named() {
    let end = |access: Access| {
        let exchanges = Arc::new(InMemory::default());
        let mut llm = Llm::new(problem(), Value::Null, access, exchanges, never(), Fallback::heuristic());
        assert_eq!(llm.ask(8), []);
        llm.end().unwrap().clone()
    };
    let model = LlmSettings { model: Some("small".to_owned()), ..settings() };
    assert_eq!(end(settings().resolve(|_| None)), End::NoModel);
    assert_eq!(end(model.clone().resolve(|_| None)), End::NoEndpoint);
    let broken = LlmSettings { endpoint: Some("ftp://h".to_owned()), ..model };
    let told = "the endpoint that the manifest says is none: its scheme is `ftp`, and must be http or https";
    assert_eq!(end(broken.resolve(|_| None)).to_string(), told);
    let mut bad_key = access("http://127.0.0.1:1", settings());
    bad_key.key = Some(ApiKey::new("two\nlines"));
    assert_eq!(end(bad_key), End::BadKey);
}

#[test]
fn requests_have_a_limit() {
    let server = ChatServer::start(vec![Behaviour::status(500, "")]);
    let told = "llm: the limit of 2 requests is reached: the heuristic stands in";
    assert_eq!(remark(&server, LlmSettings { max_requests: 2, ..settings() }), told);
    assert_eq!(server.received().len(), 2);
}

#[test]
fn tokens_have_a_limit_whether_the_server_counts_them_or_not() {
    for (behaviour, spent) in [
        (Behaviour::SayFor(answer(&[good(0)]), 9_000, 900), Some(9_900)),
        (Behaviour::SayFor(answer(&[good(0)]), u64::MAX, u64::MAX), Some(u64::MAX)),
        (Behaviour::Say(answer(&[good(0)]) + &" ".repeat(30_000)), None),
    ] {
        let server = ChatServer::start(vec![behaviour]);
        let mut llm = llm(&server.url(), LlmSettings { max_tokens: 10_000, ..settings() });
        assert_eq!(schedules(&llm.ask(8)), [good(0)]);
        llm.tell(&[measured(good(0), 1.1)]);
        assert_eq!(llm.ask(8), []);
        let End::Tokens { limit: 10_000, spent: it } = llm.end().unwrap() else { panic!("{:?}", llm.end()) };
        assert!(spent.is_none_or(|spent| spent == *it) && *it > 9_000, "{it}");
        assert_eq!(server.received().len(), 1);
    }
}

#[test]
fn nonsense_ends_in_the_fallback_which_was_told_everything() {
    #[derive(Default)]
    struct Other(Arc<Mutex<Vec<Schedule>>>, usize);
    impl Proposer for Other {
        fn ask(&mut self, _: usize) -> Vec<Proposal> {
            self.1 += 1;
            // First what the model proposed before.
            if self.1 > 3 { vec![] } else { vec![Proposal::new(good(self.1 - 1), "other")] }
        }

        fn tell(&mut self, trials: &[Trial]) {
            self.0.lock().unwrap().extend(trials.iter().map(|it| it.schedule.clone()));
        }

        fn remarks(&mut self) -> Vec<String> {
            vec!["the other's".to_owned()]
        }
    }
    let server = ChatServer::start(vec![say(&[good(0)]), Behaviour::Say("no".to_owned())]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let fallback = Fallback { name: "other strategy".to_owned(), proposer: Box::new(Other(Arc::clone(&told), 0)) };
    let exchanges = Arc::new(InMemory::default());
    let mut llm = Llm::new(problem(), Value::Null, access(&server.url(), settings()), exchanges, never(), fallback);
    llm.tell(&[measured(problem().heuristic, 1.0)]);
    assert_eq!(schedules(&llm.ask(8)), [good(0)]);
    llm.tell(&[measured(good(0), 1.1)]);
    assert_eq!(schedules(&llm.ask(8)), [good(1)]);
    assert_eq!(schedules(&llm.ask(8)), [good(2)]);
    assert_eq!(llm.ask(8), []);
    assert_eq!(*told.lock().unwrap(), [problem().heuristic, good(0)]);
    assert_eq!(server.received().len(), 4);
    let reason = "there is no JSON object in the answer";
    assert_eq!(
        llm.remarks(),
        [
            format!("llm: 3 answers in a row had no schedule to try; the last: {reason}: the other strategy stands in"),
            "the other's".to_owned()
        ]
    );
}

#[test]
fn a_build_that_is_ended_waits_for_nothing() {
    let wait = Behaviour::Respond { status: 429, headers: vec![("Retry-After", "1000".to_owned())], body: vec![] };
    for behaviour in [Behaviour::Silence, Behaviour::Drip, wait] {
        let server = ChatServer::start(vec![behaviour]);
        let count = server.counter();
        let cancelled: Cancelled = Arc::new(move || count() > 0);
        let settings =
            LlmSettings { timeout: Duration::from_secs(1000), longest_wait: Duration::from_secs(1000), ..settings() };
        let exchanges = Arc::new(InMemory::default());
        let access = access(&server.url(), settings);
        let mut llm = Llm::new(problem(), Value::Null, access, exchanges, cancelled, Fallback::heuristic());
        assert_eq!((llm.ask(8), llm.remarks()), (vec![], Vec::<String>::new()));
        assert_eq!(llm.end(), Some(&End::Cancelled));
    }
}

#[test]
fn a_key_that_everybody_can_read_is_told_of() {
    let exposed = |url: &str| Talk::new(access(url, settings()), Arc::new(InMemory::default()), never()).exposes_key();
    assert_eq!(exposed("http://example.com:81/v1").as_deref(), Some("example.com:81"));
    assert_eq!((exposed("https://example.com"), exposed("http://127.0.0.1:1")), (None, None));
}
