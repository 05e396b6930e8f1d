//! Transactions from a JSON file.

use std::path::PathBuf;

use kv_store_client::{
    KvClient,
    idl::{
        Compare, CompareResult, CompareTarget, DeleteRequest, Operation, OperationResponse, PutRequest,
        RangeRequest, TxnRequest,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Failure,
    show::{Show, pair},
};

pub(crate) async fn execute(client: &KvClient, file: &PathBuf, show: Show) -> Result<u8, Failure> {
    let bad = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| bad(error.to_string()))?;
    let file: TxnFile = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let compare = file.compare.into_iter().map(compare).collect::<Result<_, _>>().map_err(bad)?;
    let operations = |lines: Vec<OperationLine>| lines.into_iter().map(operation).collect();
    let request =
        TxnRequest::new(compare, operations(file.success), operations(file.failure), None, None, None);
    let response = client.txn(request).await?;
    let results: Vec<Value> = response.responses.iter().map(outcome).collect();
    let lines: Vec<String> = results.iter().map(Value::to_string).collect();
    let succeeded = response.succeeded;
    let result = if succeeded { "succeeded" } else { "compares do not hold" };
    show.either(
        [result.to_owned(), lines.join("\n")].join("\n").trim_end(),
        || json!({ "succeeded": succeeded, "responses": results, "revision": response.header.revision }),
    )?;
    Ok(u8::from(!succeeded))
}

fn compare(line: CompareLine) -> Result<Compare, String> {
    let (target, is_text) = match line.target {
        Target::Value => (CompareTarget::VALUE, true),
        Target::Version => (CompareTarget::VERSION, false),
        Target::Create => (CompareTarget::CREATE_REVISION, false),
        Target::Mod => (CompareTarget::MOD_REVISION, false),
    };
    let result = match line.result {
        Relation::Equal => CompareResult::EQUAL,
        Relation::NotEqual => CompareResult::NOT_EQUAL,
        Relation::Less => CompareResult::LESS,
        Relation::Greater => CompareResult::GREATER,
    };
    let text = line.value.as_str().filter(|_| is_text).map(|text| text.as_bytes().to_vec());
    let number = line.value.as_i64().filter(|_| !is_text);
    if text.is_none() && number.is_none() {
        let wanted = if is_text { "a text" } else { "a number" };
        return Err(format!("the compare of {:?} needs {wanted} as its value, not {}", line.key, line.value));
    }
    Ok(Compare::new(line.key.into_bytes(), target, result, number, text, None))
}

fn operation(line: OperationLine) -> Operation {
    match line {
        OperationLine::Put { key, value } => Operation::Put(PutRequest::of(key, value)),
        OperationLine::Get { key } => Operation::Range(RangeRequest::of(key, None)),
        OperationLine::Del { key } => Operation::DeleteRange(DeleteRequest::of(key, None)),
    }
}

fn outcome(response: &OperationResponse) -> Value {
    match response {
        OperationResponse::Put(_) => json!({ "put": {} }),
        OperationResponse::DeleteRange(response) => json!({ "del": response.deleted }),
        OperationResponse::Range(response) => json!({ "get": response.kvs.first().map(pair) }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TxnFile {
    #[serde(default)]
    compare: Vec<CompareLine>,
    #[serde(default)]
    success: Vec<OperationLine>,
    #[serde(default)]
    failure: Vec<OperationLine>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompareLine {
    key: String,
    target: Target,
    result: Relation,
    /// Operand: a string for the target `value`, a number for the others.
    value: Value,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Target {
    Value,
    Version,
    Create,
    Mod,
}

#[derive(Clone, Copy, Deserialize)]
enum Relation {
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = ">")]
    Greater,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum OperationLine {
    Put { key: String, value: String },
    Get { key: String },
    Del { key: String },
}
