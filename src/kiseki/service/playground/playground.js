"use strict";

/*
 * Mounts GraphiQL for the API that served this page. Everything typed here (headers, so Bearer
 * tokens too, documents, history, settings) and the consistency token live in memory only and
 * are gone when the page is closed.
 */
(() => {
  const ENDPOINT = "/api/graphql";
  const CONSISTENCY_TOKEN = "Kiseki-Consistency-Token";
  const INTROSPECTION = "IntrospectionQuery";
  const HEADERS_SETTLE_MILLISECONDS = 600;

  const DOCUMENTS = {
    command: `# Commands. If the API asks for a token,
# give it in "Headers" below:
# {"Authorization": "Bearer <token>"}

mutation CreateUserAccount {
  createUserAccount(
    input: {
      firstName: "Ada"
      lastName: "Lovelace"
      emailAddress: "ada@example.com"
    }
  ) {
    id
  }
}
`,
    query: `# Queries. If the API asks for a token,
# give it in "Headers" below:
# {"Authorization": "Bearer <token>"}
# To read your own write, add the token
# from the command API's answer:
# "Kiseki-Consistency-Token": "<token>"

query GetUserAccounts {
  getUserAccounts(first: 20) {
    id
    fullName
    createdAt
  }
}
`,
  };

  const api = document.documentElement.dataset.api === "command" ? "command" : "query";
  const { createElement, useCallback, useEffect, useRef, useState } = React;
  const { parse } = GraphiQL.GraphQL;

  /** What GraphiQL wants of localStorage, without the disk. */
  function memoryStorage() {
    const items = new Map();
    return {
      get length() {
        return items.size;
      },
      getItem: (key) => items.get(key) ?? null,
      setItem: (key, value) => void items.set(key, String(value)),
      removeItem: (key) => void items.delete(key),
      clear: () => items.clear(),
    };
  }

  /** "query", "mutation" or "subscription"; null when the server has to say what is wrong. */
  function operationType({ query, operationName }) {
    try {
      const operations = parse(query).definitions.filter(
        (definition) => definition.kind === "OperationDefinition",
      );
      const chosen = operationName
        ? operations.find((operation) => operation.name?.value === operationName)
        : operations[0];
      return chosen?.operation ?? null;
    } catch {
      return null;
    }
  }

  function failure(message) {
    return { errors: [{ message }] };
  }

  // The token of the last mutation: the queries after it wait until its events are projected.
  let consistencyToken = null;

  async function send(parameters, options) {
    const isIntrospection = parameters.operationName === INTROSPECTION;
    const type = operationType(parameters);
    let answer;
    try {
      const headers = new Headers();
      if (type === "query" && !isIntrospection && consistencyToken !== null) {
        headers.set(CONSISTENCY_TOKEN, consistencyToken);
      }
      for (const [name, value] of Object.entries(options?.headers ?? {})) {
        headers.set(name, String(value));
      }
      headers.set("Accept", "application/graphql-response+json, application/json;q=0.9");
      headers.set("Content-Type", "application/json");
      const response = await fetch(ENDPOINT, {
        method: "POST",
        headers,
        body: JSON.stringify(parameters),
        mode: "same-origin",
        credentials: "omit",
        cache: "no-store",
        redirect: "error",
      });
      if (type === "mutation") {
        consistencyToken = response.headers.get(CONSISTENCY_TOKEN) ?? consistencyToken;
      }
      const text = await response.text();
      try {
        answer = JSON.parse(text);
      } catch {
        answer = failure(`The server answered ${response.status} without JSON.`);
      }
    } catch (error) {
      answer = failure(`The request was not answered: ${error.message}`);
    }
    if (isIntrospection && !("data" in answer)) {
      // Without a `data` member GraphiQL would ask a second time.
      return { ...answer, data: null };
    }
    return answer;
  }

  /** The Authorization value in the text of the headers editor; null while it is no JSON. */
  function authorizationIn(text) {
    if (text.trim() === "") {
      return "";
    }
    try {
      const entries = Object.entries(JSON.parse(text) ?? {});
      const found = entries.find(([name]) => name.toLowerCase() === "authorization");
      return found === undefined ? "" : String(found[1]);
    } catch {
      return null;
    }
  }

  function Playground({ storage }) {
    const [authorization, setAuthorization] = useState("");
    const timer = useRef(undefined);
    // GraphiQL loads the schema again when it gets another fetcher: do so for other credentials.
    const fetcher = useCallback(
      (parameters, options) => send(parameters, options),
      [authorization],
    );
    const onEditHeaders = useCallback((text) => {
      clearTimeout(timer.current);
      timer.current = setTimeout(() => {
        const typed = authorizationIn(text);
        if (typed !== null) {
          setAuthorization(typed);
        }
      }, HEADERS_SETTLE_MILLISECONDS);
    }, []);
    useEffect(() => () => clearTimeout(timer.current), []);

    return createElement(
      GraphiQL,
      {
        fetcher,
        storage,
        onEditHeaders,
        defaultQuery: DOCUMENTS[api],
        shouldPersistHeaders: false,
        showPersistHeadersSettings: false,
      },
      createElement(
        GraphiQL.Logo,
        null,
        createElement("span", { className: "playground-title" }, `kiseki ${api} API`),
      ),
    );
  }

  ReactDOM.createRoot(document.getElementById("playground")).render(
    createElement(Playground, { storage: memoryStorage() }),
  );
})();
