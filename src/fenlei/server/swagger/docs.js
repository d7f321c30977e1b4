"use strict";

// No validator badge and no deep links to other sites: nothing but this server is asked.
window.docs = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  validatorUrl: null,
  queryConfigEnabled: false,
  persistAuthorization: false,
  tryItOutEnabled: true,
  onComplete: () => { document.documentElement.dataset.ready = "yes"; },
});
