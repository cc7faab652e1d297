/**
 * What may go wrong in a page, each with advice.
 *
 * Every error that the SDK raises on purpose is a `FedreconError`: it says what was wrong and where, `advice` says what
 * to do, and `reason` is a stable word for programs: the same words as in the Python SDK.
 */

/** Base of all errors of the SDK. */
export class FedreconError extends Error {
  /** Stable word for programs. */
  readonly reason: string;
  /** What to do. */
  readonly advice: string;

  constructor(reason: string, message: string, advice: string) {
    super(advice ? `${message}; ${advice}` : message);
    this.name = new.target.name;
    this.reason = reason;
    this.advice = advice;
  }
}

/** An example does not fit the fields of the store. */
export class InvalidExampleError extends FedreconError {
  constructor(message: string, advice: string) {
    super("INVALID_EXAMPLE", message, advice);
  }
}

/** There are not enough examples to train with. */
export class TooFewExamplesError extends FedreconError {
  constructor(message: string) {
    super("TOO_FEW_EXAMPLES", message, "train again when the user has more examples");
  }
}

/** A server did not give what was asked for. */
export class UnreachableError extends FedreconError {
  constructor(message: string) {
    super("UNREACHABLE", message, "check the address, and load it again later");
  }
}

/** What was loaded is not what its digest says. */
export class DamagedBlobError extends FedreconError {
  constructor(message: string) {
    super("DAMAGED_BLOB", message, "load it again; if it stays so, the server holds a damaged file");
  }
}

/** A plan, checkpoint or recommender cannot be run here. */
export class UnusablePlanError extends FedreconError {
  constructor(message: string, advice = "tell its publisher; an upgrade of the SDK may run it") {
    super("UNUSABLE_PLAN", message, advice);
  }
}

/** A plan is not signed by a publisher that the app trusts. */
export class UntrustedPlanError extends FedreconError {
  constructor(message: string) {
    super("UNTRUSTED_PLAN", message, "nothing was computed; tell the operator of the task");
  }
}

/** A computation gave values that are not finite. */
export class DivergedError extends FedreconError {
  constructor(message: string) {
    super("DIVERGED", message, "the task's rates are too large for these examples");
  }
}

/** This page or program lacks something that every browser of the last years has. */
export class UnsupportedPlatformError extends FedreconError {
  constructor(message: string, advice: string) {
    super("UNSUPPORTED_PLATFORM", message, advice);
  }
}

/**
 * Runs work that follows what a plan says. What JavaScript itself throws on the way, the plan is to blame for: whoever
 * wrote it, the app did not.
 */
export async function blamingThePlan<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof TypeError || error instanceof RangeError || error instanceof SyntaxError) {
      throw new UnusablePlanError(`the plan does not run here: ${String(error)}`);
    }
    throw error;
  }
}

/** Something tried to serialise local parameters. */
export class LocalParametersStayError extends FedreconError {
  constructor(message: string) {
    super("LOCAL_PARAMETERS_STAY", message, "they never leave the page: reconstruct them where they are needed");
  }
}
