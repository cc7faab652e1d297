/** fedrecon in a browser: the public face of the web SDK. Personal parameters stay in the page. */

export type { Example, FieldKind, StoreOptions } from "./examples.js";
export { ExampleStore } from "./examples.js";
export { FedreconError } from "./errors.js";
export type { Examples } from "./columns.js";
export { serveRuntimeFrom } from "./graphs.js";
export type { LocalParameters } from "./local_parameters.js";
export type { LocalWork } from "./bench.js";
export type { FetchBlob, PlanOptions } from "./parts.js";
export type { Seeds, TrainingResult, Update } from "./plans.js";
export { Plan } from "./plans.js";
export type { LoadOptions, Recommendation, RecommenderFiles, RecommendOptions } from "./recommender.js";
export { Recommender } from "./recommender.js";
