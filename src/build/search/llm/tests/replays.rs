use super::*;

/// A search: the heuristic's trial, then rounds until nobody proposes anything.
fn search(llm: &mut Llm) -> Vec<Proposal> {
    llm.tell(&[measured(problem().heuristic, 1.0)]);
    let mut all = Vec::new();
    loop {
        let proposals = llm.ask(3);
        if proposals.is_empty() {
            return all;
        }
        let trials: Vec<_> = proposals
            .iter()
            .enumerate()
            .map(|(at, it)| measured(it.schedule.clone(), 0.8 + at as f64 / 10.0))
            .collect();
        llm.tell(&trials);
        all.extend(proposals);
    }
}

fn behaviours() -> Vec<Behaviour> {
    vec![
        say(&[good(0), good(1), good(2), good(3)]),
        Behaviour::status(500, ""),
        Behaviour::Say(format!("my key is {KEY}")),
        say(&[good(4)]),
        Behaviour::Say("that is all".to_owned()),
    ]
}

#[test]
fn a_search_is_repeated_without_the_network_and_without_the_key() {
    let exchanges = Arc::new(InMemory::default());
    let server = ChatServer::start(behaviours());
    let mut first = kept(&server.url(), settings(), &exchanges);
    let proposals = search(&mut first);
    assert_eq!(schedules(&proposals), [0, 1, 2, 3, 4].map(good));
    let (end, spent, remarks) = (first.end().cloned(), first.spent(), first.remarks());
    drop((first, server));

    let offline = LlmSettings { model: Some("small".to_owned()), ..settings() }.resolve(|_| None);
    let store: Store = Arc::<InMemory>::clone(&exchanges);
    let mut again = Llm::new(problem(), Value::Null, offline, store, never(), Fallback::heuristic());
    assert_eq!(search(&mut again), proposals);
    assert_eq!((again.end().cloned(), again.remarks()), (end, remarks));
    assert_eq!((again.spent().requests, again.spent().tokens), (spent.requests, spent.tokens));
    assert_eq!((spent.replayed, again.spent().replayed), (0, 6));
}

#[test]
fn a_limit_ends_a_repeated_search_where_it_ended_the_first() {
    let (exchanges, limited) = (Arc::new(InMemory::default()), LlmSettings { max_requests: 3, ..settings() });
    let server = ChatServer::start(behaviours());
    let mut first = kept(&server.url(), limited.clone(), &exchanges);
    let proposals = search(&mut first);
    let requests = server.received().len();
    let mut again = kept(&server.url(), limited, &exchanges);
    assert_eq!(search(&mut again), proposals);
    assert_eq!((again.end(), again.end().map(End::code)), (first.end(), Some("llm::requests")));
    assert_eq!((requests, server.received().len()), (3, 3));
}

#[test]
fn the_key_is_nowhere_but_in_the_header() {
    let exchanges = Arc::new(InMemory::default());
    let server = ChatServer::start(behaviours());
    search(&mut kept(&server.url(), settings(), &exchanges));
    let all = exchanges.all();
    let text = serde_json::to_string(&all).unwrap();
    assert!(!text.contains("secret") && text.contains("my key is [key]"), "{text}");
    let read: Vec<Exchange> = serde_json::from_str(&text).unwrap();
    assert_eq!(read, all);
    for request in server.received() {
        assert!(!request.body.to_string().contains("secret") && !request.line.contains("secret"));
        assert_eq!(request.headers.iter().filter(|it| it.1.contains("secret")).count(), 1);
    }
}

#[test]
fn another_seed_asks_anew_and_what_a_newer_kforge_kept_is_not_read() {
    let exchanges = Arc::new(InMemory::default());
    let server = ChatServer::start(vec![say(&[good(0)])]);
    let ask = |seed| {
        let problem = Problem { seed, ..problem() };
        let store: Store = Arc::<InMemory>::clone(&exchanges);
        Llm::new(problem, Value::Null, access(&server.url(), settings()), store, never(), Fallback::heuristic()).ask(1)
    };
    let requests = || server.received().len();
    assert_eq!((ask(1), requests()), (ask(1), 1));
    ask(2);
    assert_eq!(requests(), 2);
    exchanges.age(exchange::EXCHANGE_VERSION + 1);
    ask(2);
    assert_eq!(requests(), 3);
}

#[test]
fn what_was_not_a_models_is_not_kept() {
    let exchanges = Arc::new(InMemory::default());
    let server = ChatServer::start(vec![Behaviour::status(200, "<html>please log in</html>")]);
    let mut llm = kept(&server.url(), settings(), &exchanges);
    assert_eq!(llm.ask(1), []);
    assert_eq!((llm.end().map(End::code), exchanges.all()), (Some("llm::nonsense"), vec![]));
}
