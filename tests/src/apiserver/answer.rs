// SPDX-License-Identifier: Apache-2.0

//! Who answers what.

use std::{io, net::TcpStream};

use serde_json::{Value, json};

use super::{
    Shared,
    http::{Connection, Request},
    kind::Kind,
    list, lock,
    object::Key,
    selector::Selection,
    watch,
};

/// What a request for objects is of.
pub(super) struct Asked<'a> {
    pub(super) kind: Kind,
    pub(super) selection: Selection,
    pub(super) request: &'a Request,
}

impl Asked<'_> {
    pub(super) fn option(&self, name: &str) -> &str {
        self.request.query.get(name).map_or("", String::as_str)
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        matches!(self.option(name), "true" | "1")
    }
}

/// An error as the API tells it.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": code,
    })
}

/// Answers until the client or the server ends.
pub(super) fn serve(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    let mut connection = Connection::new(stream)?;
    while let Some(request) = connection.request()? {
        lock(&shared.requests).push(format!("{} {}", request.method, request.target));
        answer(shared, &mut connection, &request)?;
    }
    Ok(())
}

fn answer(shared: &Shared, connection: &mut Connection, request: &Request) -> io::Result<()> {
    match request.method.as_str() {
        "GET" if request.path == "/version" => connection.answer(200, &version()),
        "GET" => get(shared, connection, request),
        // Events and status are taken and forgotten.
        "POST" => connection.answer(201, &echo(request)),
        "PATCH" | "PUT" => connection.answer(200, &echo(request)),
        other => connection.answer(405, &status(405, "MethodNotAllowed", other)),
    }
}

fn get(shared: &Shared, connection: &mut Connection, request: &Request) -> io::Result<()> {
    let Some((kind, namespace, name)) = Kind::of_path(&request.path) else {
        return connection.answer(404, &status(404, "NotFound", "the server could not find the requested resource"));
    };
    if let Some(name) = name {
        let found = shared.collection(kind).get(&Key::new(namespace.unwrap_or_default(), name));
        let missing = || status(404, "NotFound", &format!("{} \"{name}\" not found", kind.plural()));
        return match found {
            Some(object) => connection.answer(200, &object),
            None => connection.answer(404, &missing()),
        };
    }
    let option = |name: &str| request.query.get(name).map_or("", String::as_str);
    let selection = match Selection::new(namespace, option("labelSelector"), option("fieldSelector")) {
        Ok(selection) => selection,
        Err(error) => return connection.answer(400, &status(400, "BadRequest", &error)),
    };
    let asked = Asked { kind, selection, request };
    if asked.is_set("watch") {
        watch::answer(shared, connection, &asked)
    } else {
        list::answer(shared, connection, &asked)
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "", "compiler": "", "platform": "linux/amd64",
    })
}

fn echo(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap_or_else(|_| json!({}))
}
