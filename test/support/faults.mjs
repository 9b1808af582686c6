// What goes wrong inside a process: loaded into it before the command line (see `broken` in hourhand.ts), told by FAULT.
import { Job, JobScheduler, Queue } from 'bullmq';

const die = () => process.kill(process.pid, 'SIGKILL');

/** Do something before or after each call of a method for which `when` holds. */
function around(target, method, when, { before = async () => {}, after = async () => {} }) {
  const original = target.prototype[method];
  target.prototype[method] = async function (...args) {
    if (!when.call(this, ...args)) return original.apply(this, args);
    await before();
    const result = await original.apply(this, args);
    await after();
    return result;
  };
}

const faults = {
  /** The tick has started, and the one after it is not made yet. */
  'dies before the next tick'() {
    const byTick = (...args) => args.at(-1)?.producerId !== undefined;
    around(JobScheduler, 'upsertJobScheduler', byTick, { before: die });
  },
  /** The ledger knows of the run, the job does not. */
  'dies after a run was allotted': () => around(Job, 'updateData', ({ step }) => step === 'fan-out', { before: die }),
  /** The children are there, and their parent does not wait for them yet. */
  'dies after children were added'() {
    const ofUsers = function () {
      return this.name === 'stats-users';
    };
    around(Queue, 'addBulk', ofUsers, { after: die });
  },
  /** Nothing at all happens in it for longer than a lock holds (15 s), while a child is half done. */
  'blocks for long'() {
    let blocked = false;
    const once = function () {
      const now = !blocked && this.queueName === 'stats-users';
      blocked ||= now;
      return now;
    };
    const block = () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 25_000);
    around(Job, 'log', once, { before: async () => void block() });
  },
};

const { FAULT, CLOCK_MINUTES } = process.env;
if (FAULT) faults[FAULT]();

/** A clock that is so many minutes fast, or slow. */
if (CLOCK_MINUTES) {
  const RealDate = Date;
  const now = () => RealDate.now() + Number(CLOCK_MINUTES) * 60_000;
  globalThis.Date = class extends RealDate {
    constructor(...args) {
      super(...(args.length === 0 ? [now()] : args));
    }
    static now = now;
  };
}
