//! A chat server for tests: real HTTP on a port of this machine, and a list of what it does to each request. It needs
//! only `std` and `serde_json`, so that tests of the binary can include this file.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What is done to one request.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// A chat completion with this text.
    Say(String),
    /// The same, and how many tokens it took: of the prompt, of the answer.
    SayFor(String, u64, u64),
    /// Any response; `Content-Length` is added.
    Respond { status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8> },
    /// A body without an end, in chunks, as fast as it is read.
    Endless,
    /// A header, and then a byte now and then, without an end.
    Drip,
    /// Reads the request and says nothing.
    Silence,
    /// Closes the connection.
    HangUp,
}

impl Behaviour {
    pub fn status(status: u16, body: &str) -> Self {
        Self::Respond { status, headers: Vec::new(), body: body.as_bytes().to_vec() }
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// E.g. `POST /v1/chat/completions`.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: serde_json::Value,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|it| it.0 == name).map(|it| it.1.as_str())
    }

    /// All that the model is told.
    pub fn prompt(&self) -> String {
        let messages = self.body["messages"].as_array().into_iter().flatten();
        messages.filter_map(|it| it["content"].as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// Serves until it is dropped.
pub struct ChatServer {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl ChatServer {
    /// One behaviour for each request; the last one goes on.
    pub fn start(behaviours: Vec<Behaviour>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (received, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let accepting = {
            let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
            thread::spawn(move || {
                for stream in listener.incoming().filter_map(Result::ok) {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (behaviours, received, stop) = (behaviours.clone(), Arc::clone(&received), Arc::clone(&stop));
                    // A client may leave whenever it likes.
                    thread::spawn(move || serve(stream, &behaviours, &received, &stop).ok());
                }
            })
        };
        Self { address, received, stop, accepting: Some(accepting) }
    }

    /// What `KERNELFORGE_LLM_ENDPOINT` is to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("no thread panics with it").clone()
    }

    /// How many came so far, in a form that a closure can keep.
    pub fn counter(&self) -> impl Fn() -> usize + Send + Sync + use<> {
        let received = Arc::clone(&self.received);
        move || received.lock().expect("no thread panics with it").len()
    }
}

impl Drop for ChatServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address); // wakes the thread that accepts
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    behaviours: &[Behaviour],
    received: &Mutex<Vec<Received>>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let request = read(&stream)?;
    let number = {
        let mut received = received.lock().expect("no thread panics with it");
        received.push(request);
        received.len() - 1
    };
    let stopped = || stop.load(Ordering::SeqCst);
    match behaviours.get(number).or(behaviours.last()).cloned().unwrap_or(Behaviour::HangUp) {
        Behaviour::Say(text) => respond(&mut stream, 200, &[], &completion(&text, None)),
        Behaviour::SayFor(text, prompt, answer) => {
            respond(&mut stream, 200, &[], &completion(&text, Some((prompt, answer))))
        }
        Behaviour::Respond { status, headers, body } => respond(&mut stream, status, &headers, &body),
        Behaviour::Endless => {
            write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            let chunk = "x".repeat(0x4000);
            while !stopped() {
                write!(stream, "4000\r\n{chunk}\r\n")?;
            }
            Ok(())
        }
        Behaviour::Drip => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
            while !stopped() {
                stream.write_all(b" ")?;
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        }
        Behaviour::Silence => {
            while !stopped() {
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        }
        Behaviour::HangUp => Ok(()),
    }
}

fn read(stream: &TcpStream) -> std::io::Result<Received> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|it| it.0 == "content-length").and_then(|it| it.1.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let line = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
    Ok(Received { line, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
}

fn completion(text: &str, usage: Option<(u64, u64)>) -> Vec<u8> {
    let mut body = serde_json::json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": text },
            "finish_reason": "stop",
        }],
    });
    if let Some((prompt, answer)) = usage {
        let total = prompt.saturating_add(answer);
        body["usage"] =
            serde_json::json!({ "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total });
    }
    body.to_string().into_bytes()
}

fn respond(stream: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nConnection: close\r\n")?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)?;
    stream.flush()
}
