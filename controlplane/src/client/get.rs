//! `get`: shows objects.

use jiff::Timestamp;
use serde_json::{Value, json};
use tollgate_api::v1::{GetRequest, Key, Kind, ListRequest, Object};
use tonic::Code;

use super::{Client, Error, Output, columns, parse_target, reason_of, table};
use crate::registry::DEFAULT_NAMESPACE;

/// How objects are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// The whole object.
    Yaml,
    /// The whole object.
    Json,
}

/// Which objects.
#[derive(Clone, Debug)]
pub struct Selection {
    /// As typed: `svc`, or `svc/web`.
    pub kind: String,
    /// Empty: all.
    pub names: Vec<String>,
    /// `None`: `default`.
    pub namespace: Option<String>,
    /// In whatever namespace.
    pub all_namespaces: bool,
}

/// Shows the selected objects.
pub async fn get(
    client: &mut Client,
    selection: &Selection,
    format: Format,
    output: &mut Output<'_>,
) -> Result<bool, Error> {
    let (kind, names) = parse_target(&selection.kind, &selection.names)?;
    if selection.all_namespaces && !names.is_empty() {
        return Err(Error::Usage("an object of a certain name is in one namespace: give -n instead of -A".to_owned()));
    }
    let (objects, is_done) = if names.is_empty() {
        (list(client, kind, selection).await?, true)
    } else {
        find(client, kind, &names, selection, output).await?
    };
    let is_single = names.len() == 1;
    match format {
        Format::Table | Format::Wide if objects.is_empty() => {
            if names.is_empty() {
                writeln!(output.complaints, "No {} found{}.", kind.plural(), scope_text(kind, selection))?;
            }
        }
        Format::Table | Format::Wide => {
            let text = render_table(kind, &objects, format == Format::Wide, selection.all_namespaces)?;
            output.results.write_all(text.as_bytes())?;
        }
        Format::Yaml | Format::Json if is_single && objects.is_empty() => {}
        Format::Yaml | Format::Json => {
            let value = whole(objects, is_single)?;
            let text = match format {
                Format::Yaml => serde_saphyr::to_string(&value).map_err(Error::Yaml)?,
                _ => format!("{value:#}\n"),
            };
            output.results.write_all(text.as_bytes())?;
        }
    }
    Ok(is_done)
}

async fn list(client: &mut Client, kind: Kind, selection: &Selection) -> Result<Vec<Object>, Error> {
    let namespace = if selection.all_namespaces || !kind.is_namespaced() { "" } else { namespace_of(selection) };
    let request = ListRequest { kind: kind.into(), namespace: namespace.to_owned() };
    let answer = client.list(request).await.map_err(Error::call(format!("list {}", kind.plural())))?;
    Ok(answer.into_inner().objects)
}

async fn find(
    client: &mut Client,
    kind: Kind,
    names: &[String],
    selection: &Selection,
    output: &mut Output<'_>,
) -> Result<(Vec<Object>, bool), Error> {
    let mut objects = Vec::new();
    let mut is_done = true;
    for name in names {
        let key = Key::new(kind, namespace_of(selection), name);
        match client.get(GetRequest { key: Some(key.clone()) }).await {
            Ok(answer) => objects.extend(answer.into_inner().object),
            Err(status) if status.code() == Code::NotFound => {
                is_done = false;
                writeln!(output.complaints, "error: {}", reason_of(&status))?;
            }
            Err(status) => return Err(Error::call(format!("get {key}"))(status)),
        }
    }
    Ok((objects, is_done))
}

fn render_table(kind: Kind, objects: &[Object], wide: bool, all_namespaces: bool) -> Result<String, Error> {
    let with_namespace = all_namespaces && kind.is_namespaced();
    let mut header = columns::header(kind, wide);
    if with_namespace {
        header.insert(0, "NAMESPACE".to_owned());
    }
    let now = Timestamp::now();
    let mut rows = vec![header];
    for object in objects {
        let key = object.key.clone().unwrap_or_default();
        let row = columns::row(kind, object, wide, now);
        let mut row = row.map_err(|source| Error::Object { key: key.clone(), source })?;
        if with_namespace {
            row.insert(0, key.namespace);
        }
        rows.push(row);
    }
    Ok(table::render(&rows))
}

/// One object as it is, several as a `List`.
fn whole(objects: Vec<Object>, is_single: bool) -> Result<Value, Error> {
    let parse = |object: Object| {
        let key = object.key.unwrap_or_default();
        serde_json::from_slice::<Value>(&object.json).map_err(|source| Error::Object { key, source })
    };
    let mut values = objects.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    match values.pop() {
        Some(value) if is_single => Ok(value),
        last => {
            values.extend(last);
            Ok(json!({"apiVersion": "v1", "kind": "List", "items": values}))
        }
    }
}

fn namespace_of(selection: &Selection) -> &str {
    selection.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}

fn scope_text(kind: Kind, selection: &Selection) -> String {
    match kind.is_namespaced() && !selection.all_namespaces {
        true => format!(" in namespace {}", namespace_of(selection)),
        false => String::new(),
    }
}
