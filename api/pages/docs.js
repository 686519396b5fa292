"use strict";
// The token and the tenant may come in the fragment, which no browser sends: /docs#token=...&tenant=demo
const given = new URLSearchParams(location.hash.slice(1));
window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: false,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  validatorUrl: null,
  onComplete: () => {
    if (given.get("token")) window.ui.preauthorizeApiKey("HTTPBearer", given.get("token"));
  },
});
