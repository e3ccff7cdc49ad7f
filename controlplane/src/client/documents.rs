//! Manifests from files, directories and standard input: YAML or JSON, several documents in one, lists unfolded.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tollgate_api::v1::{Key, Kind};

use super::Error;

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// One object of a manifest, or why it can't be read.
#[derive(Debug)]
pub(super) struct Document {
    /// Where it stands, for a person: `web.yaml: document 2 (line 14)`.
    pub(super) place: String,
    pub(super) content: Result<Value, String>,
}

/// Reads what `-f` names, in order.
pub(super) fn read(sources: &[PathBuf]) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for source in sources {
        for (name, text) in texts(source)? {
            documents.extend(parse(&name, &text));
        }
    }
    Ok(documents)
}

/// The documents of one text.
pub(super) fn parse(name: &str, text: &str) -> Vec<Document> {
    let text = text.trim_start_matches('\u{feff}');
    let parsed = if text.trim_start().starts_with(['{', '[']) { parse_json(name, text) } else { None };
    parsed.unwrap_or_else(|| parse_yaml(name, text)).into_iter().flat_map(unfold).collect()
}

/// The object's key and the object with the namespace that it is to go to; the reason where that can't be said.
pub(super) fn address(mut object: Value, namespace: Option<&str>) -> Result<(Key, Value), String> {
    let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind, name) = (word("/apiVersion"), word("/kind"), word("/metadata/name"));
    let own_namespace = word("/metadata/namespace");
    if api_version.is_empty() || kind.is_empty() {
        return Err("is no Kubernetes object: apiVersion and kind are required".to_owned());
    }
    let Some(kind) = Kind::of_manifest(&api_version, &kind) else {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let known = known.join(", ");
        return Err(format!("{kind} {name} ({api_version}) is not supported and was skipped; supported are {known}"));
    };
    if name.is_empty() {
        return Err(match object.pointer("/metadata/name") {
            Some(other) => format!("the {kind}'s metadata.name is {other}, but must be text: put it in quotes"),
            None => format!("the {kind} has no metadata.name"),
        });
    }
    if !kind.is_namespaced() {
        return Ok((Key::new(kind, "", name), object));
    }
    match namespace {
        Some(asked) if own_namespace.is_empty() => {
            if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
                metadata.insert("namespace".to_owned(), asked.into());
            }
            Ok((Key::new(kind, asked, name), object))
        }
        Some(asked) if asked != own_namespace => {
            Err(format!("{kind} {name} is in namespace {own_namespace}, but -n says {asked}"))
        }
        _ if own_namespace.is_empty() => Ok((Key::new(kind, crate::registry::DEFAULT_NAMESPACE, name), object)),
        _ => Ok((Key::new(kind, own_namespace, name), object)),
    }
}

fn texts(source: &Path) -> Result<Vec<(String, String)>, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    if source == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(failed(Path::new("standard input")))?;
        return Ok(vec![("standard input".to_owned(), text)]);
    }
    if !fs::metadata(source).map_err(failed(source))?.is_dir() {
        let text = fs::read_to_string(source).map_err(failed(source))?;
        return Ok(vec![(source.display().to_string(), text)]);
    }
    let entries = fs::read_dir(source).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed(source))?;
    let has_extension = |path: &Path| EXTENSIONS.iter().any(|known| path.extension().is_some_and(|ext| ext == *known));
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).filter(|path| has_extension(path)).collect();
    paths.sort();
    if paths.is_empty() {
        return Err(Error::EmptyDirectory { path: source.to_owned() });
    }
    let read = |path: PathBuf| Ok((path.display().to_string(), fs::read_to_string(&path).map_err(failed(&path))?));
    paths.into_iter().map(read).collect()
}

/// JSON texts one after the other. `None` where it is none: YAML may begin like JSON as well.
fn parse_json(name: &str, text: &str) -> Option<Vec<Document>> {
    let values: Vec<Value> = serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().ok()?;
    let several = values.len() > 1;
    let place = |index: usize| if several { format!("{name}: document {}", index + 1) } else { name.to_owned() };
    let documents = values.into_iter().enumerate();
    Some(documents.map(|(index, value)| Document { place: place(index), content: Ok(value) }).collect())
}

/// Cut at the `---` lines before it is parsed, as kubectl does, so that a broken document does not take the others along.
fn parse_yaml(name: &str, text: &str) -> Vec<Document> {
    let mut pieces: Vec<(usize, String)> = vec![(1, String::new())];
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let is_cut =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if is_cut {
            // What follows on the line is the document's already: a comment, a tag.
            pieces.push((index + 1, line.replacen("---", "", 1)));
        } else if let Some((_, piece)) = pieces.last_mut() {
            piece.push_str(line);
        }
    }
    let is_blank = |line: &str| matches!(line.trim_start().chars().next(), None | Some('#'));
    pieces.retain(|(_, piece)| !piece.lines().all(is_blank));
    let several = pieces.len() > 1;
    let documents = pieces.into_iter().enumerate();
    documents
        .map(|(index, (line, piece))| Document {
            place: if several { format!("{name}: document {} (line {line})", index + 1) } else { name.to_owned() },
            content: parse_piece(&piece, line),
        })
        .collect()
}

fn parse_piece(piece: &str, line: usize) -> Result<Value, String> {
    let parse = |text: &str| {
        // The limits are for input from strangers; these are the user's own files, and large ones are the point. A
        // label of "n" or "on" is text: only true and false are not.
        let options = serde_saphyr::options! { budget: None, with_snippet: false, strict_booleans: true };
        serde_saphyr::from_str_with_options::<Value>(text, options)
    };
    // Parsed again below as many empty lines as come before it, so that the error names the line of the file.
    parse(piece).map_err(|error| {
        let lines = "\n".repeat(line - 1);
        format!("is not YAML: {}", parse(&(lines + piece)).err().unwrap_or(error))
    })
}

/// A `List` is its items.
fn unfold(document: Document) -> Vec<Document> {
    let is_list = |value: &Value| {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        kind.ends_with("List") && value.get("items").is_some_and(Value::is_array)
    };
    match document.content {
        Ok(Value::Array(items)) => unfold_items(&document.place, items, None),
        Ok(mut value) if is_list(&value) => {
            let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
            // The items of a ServiceList need not say again what they are.
            let implied = kind.strip_suffix("List").filter(|kind| !kind.is_empty()).map(str::to_owned);
            let api_version = value.get("apiVersion").cloned();
            let implied = implied.zip(api_version);
            let items = value.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take);
            unfold_items(&document.place, items.unwrap_or_default(), implied)
        }
        content => vec![Document { place: document.place, content }],
    }
}

fn unfold_items(place: &str, items: Vec<Value>, implied: Option<(String, Value)>) -> Vec<Document> {
    let complete = |mut item: Value| {
        if let (Some((kind, api_version)), Some(object)) = (&implied, item.as_object_mut()) {
            object.entry("kind").or_insert_with(|| kind.clone().into());
            object.entry("apiVersion").or_insert_with(|| api_version.clone());
        }
        item
    };
    let items = items.into_iter().enumerate();
    items
        .map(|(index, item)| Document { place: format!("{place}: item {}", index + 1), content: Ok(complete(item)) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let show = |document: Document| match document.content {
            Ok(value) => format!("{} = {value}", document.place),
            Err(reason) => format!("{} ! {reason}", document.place),
        };
        parse("f", text).into_iter().map(show).collect()
    }

    #[test]
    fn texts_are_cut_into_documents() {
        let rows: [(&str, &str, &[&str]); 9] = [
            ("one", "a: 1\n", &[r#"f = {"a":1}"#]),
            (
                "several",
                "---\na: 1\n---\nb: 2\n",
                &[r#"f: document 1 (line 1) = {"a":1}"#, r#"f: document 2 (line 3) = {"b":2}"#],
            ),
            ("comments and blanks are none", "# x\n---\n\n---\n# y\na: 1\n---\n", &[r#"f = {"a":1}"#]),
            ("dashes in a block are text", "a: |\n  ---\n  x\n", &[r#"f = {"a":"---\nx\n"}"#]),
            (
                "CRLF",
                "a: 1\r\n---\r\nb: 2\r\n",
                &[r#"f: document 1 (line 1) = {"a":1}"#, r#"f: document 2 (line 2) = {"b":2}"#],
            ),
            (
                "JSON, one after the other",
                "{\"a\":1}\n{\"b\":2}",
                &[r#"f: document 1 = {"a":1}"#, r#"f: document 2 = {"b":2}"#],
            ),
            ("YAML that begins like JSON", "{a: 1}", &[r#"f = {"a":1}"#]),
            (
                "words that some YAML takes for booleans",
                "{a: n, b: on, c: true}",
                &[r#"f = {"a":"n","b":"on","c":true}"#],
            ),
            ("nothing", "", &[]),
        ];
        for (name, text, expected) in rows {
            assert_eq!(shown(text), expected, "{name}");
        }
    }

    #[test]
    fn lists_are_their_items() {
        let list = "kind: List\napiVersion: v1\nitems:\n- kind: Node\n- kind: Pod\n";
        assert_eq!(shown(list), [r#"f: item 1 = {"kind":"Node"}"#, r#"f: item 2 = {"kind":"Pod"}"#]);
        let typed = "kind: NodeList\napiVersion: v1\nitems:\n- a: 1\n";
        assert_eq!(shown(typed), [r#"f: item 1 = {"a":1,"kind":"Node","apiVersion":"v1"}"#]);
    }

    #[test]
    fn a_broken_document_names_its_line_and_leaves_the_others() {
        let shown = shown("a: 1\n---\nb: 1\nb: 2\n---\nc: 3\n");
        assert_eq!(shown.len(), 3);
        assert_eq!(shown[0], r#"f: document 1 (line 1) = {"a":1}"#);
        assert!(shown[1].starts_with("f: document 2 (line 2) ! is not YAML: "), "{}", shown[1]);
        assert!(shown[1].contains("line 4"), "{}", shown[1]);
        assert_eq!(shown[2], r#"f: document 3 (line 5) = {"c":3}"#);
    }

    #[test]
    fn large_manifests_are_read() {
        // More than the parser lets through unasked.
        let text = format!("a: [{}]", "1,".repeat(260_000));
        assert!(parse("f", &text)[0].content.is_ok());
    }

    #[test]
    fn objects_go_to_their_namespace_or_the_asked_one() {
        let object = |namespace: &str| serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace}});
        let key = |namespace, asked| address(object(namespace), asked).map(|(key, _)| key.to_string());
        assert_eq!(key("", None).unwrap(), "service default/web");
        assert_eq!(key("a", None).unwrap(), "service a/web");
        assert_eq!(key("", Some("b")).unwrap(), "service b/web");
        assert_eq!(key("b", Some("b")).unwrap(), "service b/web");
        assert_eq!(key("a", Some("b")).unwrap_err(), "service web is in namespace a, but -n says b");
        let deployment =
            serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}});
        assert_eq!(
            address(deployment, None).unwrap_err(),
            "Deployment web (apps/v1) is not supported and was skipped; supported are Service, EndpointSlice, Node, Namespace, Pod"
        );
    }
}
