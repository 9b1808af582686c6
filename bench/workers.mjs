// Do more worker processes cost anything where the cores are all in use already?
export { benchWorkers as bench } from './backfill.mjs';
